//! One step: a call, or several in a multicall, or a touch of memory.

use pv::abi::grant_table::{GrantStatus, MapGrantRef};
use pv::hypercall::{call, entry, multicall};
use pv::{Answer, insn, trap};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::calls;
use crate::dice::Dice;
use crate::scene::{ENTRIES, ENTRY, Scene};

/// Where requests lie while the hypervisor looks at them.
pub struct Room {
    words: [u64; 256],
    used: usize,
}

impl Room {
    const fn new() -> Self {
        Self {
            words: [0; 256],
            used: 0,
        }
    }

    /// Puts a request there, and returns its address. What does not fit is left out, and refused for its address.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, request: &T) -> u64 {
        let bytes = request.as_bytes();
        let words = bytes.len().div_ceil(8);
        let Some(place) = self.words.get_mut(self.used..self.used + words) else {
            return 0;
        };
        self.used += words;
        place.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        pv::hypercall::address(place)
    }

    /// Reads what the hypervisor left at `address`, which [`Self::put`] returned.
    fn get<T: FromBytes>(&self, address: u64) -> Option<T> {
        let offset = address.checked_sub(self.words.as_ptr().expose_provenance() as u64)? as usize;
        T::read_from_prefix(self.words.as_bytes().get(offset..)?)
            .ok()
            .map(|(value, _)| value)
    }
}

/// A call, and what to remember of it.
pub struct Call {
    pub number: u32,
    pub arguments: [u64; 5],
    pub after: After,
}

/// What a call may have changed that later ones must know.
#[derive(Clone, Copy)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The request at this address may have got a handle.
    Mapped(u64),
    /// The list at this address may hold the new frame of this page.
    Populated { list: u64, pfn: u64 },
}

impl Call {
    /// A call after which nothing needs to be remembered.
    pub fn new<const N: usize>(number: u32, arguments: [u64; N]) -> Self {
        let mut all = [0; 5];
        all[..N].copy_from_slice(&arguments);
        Self {
            number,
            arguments: all,
            after: After::Nothing,
        }
    }

    /// And one after which something does.
    pub fn then(self, after: After) -> Self {
        Self { after, ..self }
    }

    fn remember(&self, answer: Answer, room: &Room, scene: &Scene) {
        match self.after {
            After::Mapped(at) => {
                let request: Option<MapGrantRef> = room.get(at);
                let done = request.filter(|map| answer.is_ok() && map.status == GrantStatus::OKAY);
                done.into_iter().for_each(|map| scene.mapped(map.handle, map.host_addr));
            }
            // A list that still has the page's number was not answered.
            After::Populated { list, pfn } => {
                let mfn: Option<u64> = room.get(list);
                mfn.filter(|mfn| answer.is_ok() && *mfn != pfn)
                    .into_iter()
                    .for_each(|mfn| scene.took(pfn, mfn));
            }
            After::Nothing => {}
        }
    }
}

/// Makes one step, and returns how many calls were accepted.
pub fn make(dice: &mut Dice, scene: &Scene) -> u64 {
    let mut room = Room::new();
    match dice.below(8) {
        0 => touch(dice, scene),
        1 => several(dice, scene, &mut room),
        _ => {
            let made = calls::draw(dice, scene, &mut room);
            let answer = trap::attempt(|| call(made.number, made.arguments));
            let answer = answer.unwrap_or(Answer(-1));
            made.remember(answer, &room, scene);
            answer.is_ok().into()
        }
    }
}

fn several(dice: &mut Dice, scene: &Scene, room: &mut Room) -> u64 {
    let made: [Call; 4] = core::array::from_fn(|_| calls::draw(dice, scene, room));
    let mut list = [0; 4].map(|_: u8| entry(0, []));
    for (entry, made) in list.iter_mut().zip(&made) {
        entry.op = made.number.into();
        entry.args[..5].copy_from_slice(&made.arguments);
        // An entry that is not reached must not look done.
        entry.result = u64::MAX;
    }
    let outcome = trap::attempt(|| multicall(&mut list));
    let mut accepted = 0;
    for (entry, made) in list.iter().zip(&made).filter(|_| outcome.is_ok()) {
        let answer = Answer(entry.result.cast_signed());
        made.remember(answer, room, scene);
        accepted += u64::from(answer.is_ok());
    }
    accepted
}

/// Reads or writes through whatever is mapped, with the instructions that kernels use on page tables.
fn touch(dice: &mut Dice, scene: &Scene) -> u64 {
    let page = if dice.once_in(3) {
        scene.page(dice.below(64))
    } else {
        scene.window(dice.below(64))
    };
    let place = page.address() + (ENTRY + dice.below(ENTRIES)) * 8;
    let value = calls::entry_value(dice, scene);
    let how = dice.below(6);
    let outcome = trap::attempt(|| match how {
        0 => _ = insn::peek(place),
        1 => _ = insn::exchange(place, value),
        2 => _ = insn::compare_exchange(place, insn::peek(place), value),
        3 => insn::and(place, !2),
        _ => insn::poke(place, value),
    });
    outcome.is_ok().into()
}

/// A structure with everything zero but what `fill` says.
pub fn request<T: FromZeros>(fill: impl FnOnce(&mut T)) -> T {
    let mut request = T::new_zeroed();
    fill(&mut request);
    request
}
