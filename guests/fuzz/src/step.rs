//! One step: a call, or several in a multicall, a touch of memory, a while in user mode, or an instruction that the
//! hypervisor carries out.

use pv::abi::grant_table::{GrantStatus, MapGrantRef};
use pv::abi::xen::HYPERVISOR_VIRT_START;
use pv::code::Code;
use pv::hypercall::number::MULTICALL;
use pv::hypercall::{call, entry, multicall};
use pv::{Answer, insn, trap};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::calls;
use crate::dice::Dice;
use crate::scene::{ENTRIES, ENTRY, Scene};
use crate::{modes, neighbour};

/// Nothing is mapped there.
const NOWHERE: u64 = 0x7f00_0000_0000;
/// How many words requests may need.
const WORDS: usize = 512;

/// Where requests lie while the hypervisor looks at them.
pub struct Room {
    words: [u64; WORDS],
    /// Which of them may be spoilt.
    loose: [bool; WORDS],
    used: usize,
}

impl Room {
    const fn new() -> Self {
        Self {
            words: [0; WORDS],
            loose: [false; WORDS],
            used: 0,
        }
    }

    /// Puts a request there, and returns its address. What does not fit is left out, and refused for its address.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, request: &T) -> u64 {
        self.put_after(request, 0)
    }

    /// Puts one there of which the first `solid` words are not to be spoilt.
    pub fn put_after<T: IntoBytes + Immutable + ?Sized>(&mut self, request: &T, solid: usize) -> u64 {
        let bytes = request.as_bytes();
        let all = self.used..self.used + bytes.len().div_ceil(8);
        let Some(place) = self.words.get_mut(all.clone()) else {
            return NOWHERE;
        };
        place.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        let address = pv::hypercall::address(place);
        self.loose[all.start..all.end]
            .iter_mut()
            .skip(solid)
            .for_each(|loose| *loose = true);
        self.used = all.end;
        address
    }

    /// Puts one there that is not to be spoilt.
    pub fn put_as_it_is<T: IntoBytes + Immutable + ?Sized>(&mut self, request: &T) -> u64 {
        self.put_after(request, WORDS)
    }

    /// Makes one word something that nobody would put there.
    fn spoil(&mut self, dice: &mut Dice) {
        let (at, value) = (dice.below(WORDS as u64) as usize % self.used.max(1), strange(dice));
        if self.loose[at] {
            self.words[at] = value;
        }
    }

    /// Reads what the hypervisor left at `address`, which [`Self::put`] returned.
    fn get<T: FromBytes>(&self, address: u64) -> Option<T> {
        let offset = address.checked_sub(self.words.as_ptr().expose_provenance() as u64)? as usize;
        T::read_from_prefix(self.words.as_bytes().get(offset..)?)
            .ok()
            .map(|(value, _)| value)
    }
}

/// A value that is hardly ever right.
fn strange(dice: &mut Dice) -> u64 {
    const VALUES: [u64; 10] = [
        0,
        1,
        u64::MAX,
        1 << 63,
        1 << 40,
        HYPERVISOR_VIRT_START,
        HYPERVISOR_VIRT_START + 0x2d0_4020_0000,
        NOWHERE,
        0x0123_0000_0000_0000,
        0x7ff2,
    ];
    dice.one_of(&VALUES)
}

/// A call, and what to remember of it.
pub struct Call {
    pub number: u32,
    pub arguments: [u64; 5],
    pub after: After,
    /// How many of the arguments may be spoilt.
    loose: usize,
}

/// What a call may have changed that later ones must know.
#[derive(Clone, Copy)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The request at this address may have got a handle.
    Mapped(u64),
    /// The list at this address may hold the new frames of these pages, of which so many count.
    Populated { list: u64, pfns: [u64; 4], count: u64 },
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
            loose: N,
        }
    }

    /// The same, of which only the first so many arguments may be spoilt: what lies behind a list that is taken for a
    /// longer one is our own stack, which is written to.
    pub fn loose(self, loose: usize) -> Self {
        Self { loose, ..self }
    }

    /// The same, never to be spoilt.
    pub fn never_spoilt(self) -> Self {
        self.loose(0)
    }

    fn spoil(&mut self, dice: &mut Dice) {
        let (at, value) = (dice.below(5) as usize, strange(dice));
        if at < self.loose {
            self.arguments[at] = value;
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
            // An element that still has the page's number was not answered.
            After::Populated { list, pfns, count } => {
                let mfns: Option<[u64; 4]> = room.get(list);
                let pairs = mfns.into_iter().flatten().zip(pfns).take(count as usize);
                pairs
                    .filter(|(mfn, pfn)| answer.is_ok() && mfn != pfn)
                    .for_each(|(mfn, pfn)| scene.took(pfn, mfn));
            }
            After::Nothing => {}
        }
    }
}

/// Makes one step, and returns how many calls were accepted.
pub fn make(dice: &mut Dice, scene: &Scene, code: &mut Code) -> u64 {
    match dice.below(512) {
        0 => u64::from(neighbour::make_anew(scene)),
        1..=63 => touch(dice, scene),
        64..=95 => modes::in_user(dice, scene, code),
        96..=111 => modes::in_kernel(dice, scene, code),
        112..=175 => several(dice, scene),
        _ => one(dice, scene),
    }
}

fn one(dice: &mut Dice, scene: &Scene) -> u64 {
    let mut room = Room::new();
    let mut made = calls::draw(dice, scene, &mut room);
    spoil(dice, core::slice::from_mut(&mut made), &mut room);
    let answer = trap::attempt(|| call(made.number, made.arguments));
    let answer = answer.unwrap_or(Answer(-1));
    made.remember(answer, &room, scene);
    answer.is_ok().into()
}

/// Now and then something is wrong with a request.
fn spoil(dice: &mut Dice, calls: &mut [Call], room: &mut Room) {
    if dice.once_in(12) {
        room.spoil(dice);
    }
    if dice.once_in(24) {
        calls.iter_mut().for_each(|call| call.spoil(dice));
    }
}

/// The most calls in a multicall.
const SEVERAL: usize = 12;

fn several(dice: &mut Dice, scene: &Scene) -> u64 {
    let mut room = Room::new();
    let count = 1 + dice.below(SEVERAL as u64) as usize;
    let mut made: [Call; SEVERAL] = core::array::from_fn(|_| calls::draw(dice, scene, &mut room));
    spoil(dice, &mut made, &mut room);
    let mut list = [0; SEVERAL].map(|_: u8| entry(0, []));
    for (entry, made) in list.iter_mut().zip(&made) {
        entry.op = made.number.into();
        entry.args[..5].copy_from_slice(&made.arguments);
        // An entry that is not reached must not look done.
        entry.result = u64::MAX;
    }
    let (outer, inner) = list.split_at_mut(count);
    // One of them may be a multicall itself, of those that were drawn beyond the count.
    if dice.once_in(4) && !inner.is_empty() {
        let nested = inner.len() as u64;
        outer[0] = entry(MULTICALL, [pv::hypercall::address(inner), nested]);
    }
    let outcome = trap::attempt(|| multicall(outer));
    let mut accepted = 0;
    for (entry, made) in list.iter().zip(&made).filter(|_| outcome.is_ok()) {
        if entry.op != u64::from(made.number) {
            continue;
        }
        let answer = Answer(entry.result.cast_signed());
        made.remember(answer, &room, scene);
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
