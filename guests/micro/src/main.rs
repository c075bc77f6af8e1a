//! A guest kernel that does one thing, which its command line names:
//!
//! - `idle`: blocks for ever, as an idle system does.
//! - `end reason=N`: shuts itself down for that reason: 0 power off, 1 reboot, 2 suspend, 3 crash, 4 watchdog,
//!   5 soft reset.
//! - `rights`: says at which level it runs, which instructions fault, and how hypercalls of Domain 0's are refused.
//! - `spin`: spins for ever with events masked. Nothing can reach it; only its host can end it. A host that
//!   needs the guest's consent to destroy it, or that lets it starve Domain 0, fails here.
//! - `storm seed=N`: calls every hypercall number with random arguments until it dies of it. Its own death
//!   is fine. Anything else that suffers is a fault of the host. With `gentle` it leaves out the calls that
//!   end or jump away by design, and so lives longer.
//! - `store-storm`: reads and writes in xenstore, as fast as its ring takes it.
//! - `mark=N`: writes N all over its free memory, says so, and blocks for ever.
//! - `search=N`: looks for N in the memory that it was given, says how many words it found, and blocks. After a
//!   `mark`ed guest has gone, its memory may become another's; what it wrote must not (XSA-100's lesson, and the
//!   promise of every hypervisor).
//!
//! The same file runs on Debian's Xen and on Ferroxen.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod dice;
mod rights;
mod traces;

use dice::Dice;
use pv::abi::sched::schedop;
use pv::hypercall::{address, call, number};
use pv::store::{Store, kind};
use pv::{event, power, start};

pv::main!(run);

/// Past the last number that upstream uses.
const HYPERCALLS: u32 = 64;
/// set_callbacks and stack_switch lead astray, iret jumps, sched_op may shut down, multicall may do all that.
const NOT_GENTLE: [u32; 5] = [
    number::STACK_SWITCH,
    number::SET_CALLBACKS,
    number::MULTICALL,
    number::IRET,
    number::SCHED_OP,
];

fn run() {
    let has = |wanted: &str| start::words().any(|word| word == wanted);
    if has("storm") {
        storm(Dice::new(start::option("seed").unwrap_or(1)), has("gentle"));
    }
    if has("store-storm") {
        store_storm();
    }
    if has("end") {
        power::off(start::option("reason").unwrap_or(0) as u32);
    }
    if has("rights") {
        rights::tell();
    }
    if has("spin") {
        event::set_upcall_mask(true);
        loop {
            core::hint::spin_loop();
        }
    }
    if let Some(mark) = start::option("mark") {
        traces::leave(mark);
    }
    if let Some(mark) = start::option("search") {
        traces::search(mark);
    }
    loop {
        call(number::SCHED_OP, [schedop::BLOCK]);
    }
}

/// Does not come back, where there is a xenstore.
fn store_storm() {
    let (mut read, mut write) = ([0; 64], [0; 64]);
    let lengths = (
        Store::message(kind::READ, &[b"name\0"], &mut read),
        Store::message(kind::WRITE, &[b"data/storm\0", b"blows"], &mut write),
    );
    if let (Some(store), (Some(reading), Some(writing))) = (Store::open(), lengths) {
        store.flood(&[&read[..reading], &write[..writing]]);
    }
}

fn storm(mut dice: Dice, gentle: bool) -> ! {
    // What the calls may read as their structures: random, and now and then filled anew.
    let mut page = [0_u64; 512];
    loop {
        for word in &mut page {
            *word = dice.argument(0);
        }
        for _ in 0..256 {
            let number = dice.below(HYPERCALLS.into()) as u32;
            if gentle && NOT_GENTLE.contains(&number) {
                continue;
            }
            let near = address(&mut page);
            call(number, [0; 5].map(|_: u64| dice.argument(near)));
        }
    }
}
