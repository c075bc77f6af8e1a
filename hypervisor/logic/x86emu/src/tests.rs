use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

const CODE: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
const TABLE: u64 = 0x60_0000;

/// A guest of three pages: code, data and a page table.
struct Guest {
    code: Vec<u8>,
    data: Vec<u8>,
    table: Vec<u8>,
    is_kernel: bool,
    iopl: bool,
    wide: bool,
    log: Vec<(u16, u32)>,
    cr: [u64; 5],
    msrs: BTreeMap<u32, u64>,
    fetched: usize,
    /// Another CPU changes the entry this many times.
    races: usize,
}

impl Guest {
    fn new(code: &[u8]) -> Guest {
        Guest {
            code: code.to_vec(),
            data: vec![0; 4096],
            table: vec![0; 4096],
            is_kernel: true,
            iopl: true,
            wide: true,
            log: Vec::new(),
            cr: [0x8005_0033, 0, 0, 0x1000, 0x620],
            msrs: BTreeMap::from([(0xc000_0080, 0xd01)]),
            fetched: 0,
            races: 0,
        }
    }

    fn registers(&self) -> Registers {
        Registers {
            rip: CODE,
            rflags: 0x202,
            ..Registers::default()
        }
    }

    fn entry(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.table[index * 8..][..8].try_into().unwrap())
    }
}

fn part(memory: &[u8], base: u64, at: u64, length: usize) -> Option<&[u8]> {
    let begin = usize::try_from(at.checked_sub(base)?).ok()?;
    memory.get(begin..begin.checked_add(length)?)
}

impl Space for Guest {
    fn fetch(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        self.fetched += bytes.len();
        let mut page = self.code.clone();
        // Code ends with its page; what follows is not mapped.
        page.resize(4096, 0x90);
        match part(&page, CODE, at, bytes.len()) {
            Some(found) => {
                bytes.copy_from_slice(found);
                Ok(())
            }
            None => Err(Exception::PageFault {
                address: at,
                code: 0x14,
            }),
        }
    }
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        match part(&self.data, DATA, at, bytes.len()) {
            Some(found) => {
                bytes.copy_from_slice(found);
                Ok(())
            }
            None => Err(Exception::PageFault { address: at, code: 4 }),
        }
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Exception> {
        let begin = at.wrapping_sub(DATA) as usize;
        match self.data.get_mut(begin..begin.saturating_add(bytes.len())) {
            Some(target) => {
                target.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Exception::PageFault { address: at, code: 6 }),
        }
    }
    fn segment_base(&self, segment: Segment) -> Option<u64> {
        Some(if segment == Segment::Gs { DATA } else { 0 })
    }
    fn is_64_bit(&self) -> bool {
        self.wide
    }
}

impl Vcpu for Guest {
    fn is_kernel(&self) -> bool {
        self.is_kernel
    }
    fn has_io_privilege(&self) -> bool {
        self.iopl
    }
    fn may_use_port(&self, port: u16, _: Io) -> bool {
        port < 0x1000
    }
    fn port_read(&mut self, port: u16, _: Io) -> u32 {
        0x1234_5600 | u32::from(port & 0xff)
    }
    fn port_write(&mut self, port: u16, _: Io, value: u32) {
        self.log.push((port, value));
    }
    fn read_cr(&mut self, number: u8) -> Result<u64, Exception> {
        Ok(self.cr[usize::from(number)])
    }
    fn write_cr(&mut self, number: u8, value: u64) -> Result<(), Exception> {
        self.cr[usize::from(number)] = value;
        Ok(())
    }
    fn read_dr(&mut self, _: u8) -> Result<u64, Exception> {
        Ok(0xffff_0ff0)
    }
    fn write_dr(&mut self, _: u8, _: u64) -> Result<(), Exception> {
        Err(Exception::GP)
    }
    fn read_msr(&mut self, number: u32) -> Result<u64, Exception> {
        self.msrs.get(&number).copied().ok_or(Exception::GP)
    }
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Exception> {
        self.msrs.insert(number, value);
        Ok(())
    }
    fn cpuid(&mut self, leaf: u32, subleaf: u32, forced: bool) -> Result<[u32; 4], Exception> {
        Ok([leaf, subleaf, u32::from(forced), 7])
    }
    fn read_tsc(&mut self) -> Result<u64, Exception> {
        Ok(0x1_0000_0002)
    }
    fn tsc_aux(&mut self) -> u32 {
        3
    }
    fn write_xcr(&mut self, _: u32, _: u64) -> Result<(), Exception> {
        Ok(())
    }
    fn flush_cache(&mut self) {}
}

impl Door for Guest {
    fn load(&mut self, at: u64, bytes: usize) -> Result<u64, Rejected> {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(part(&self.table, TABLE, at, bytes).ok_or(Rejected::NotOurs)?);
        Ok(u64::from_le_bytes(word))
    }
    fn store(&mut self, at: u64, bytes: usize, value: u64) -> Result<(), Rejected> {
        assert!(bytes == 8 || value >> (bytes * 8) == 0);
        let begin = (at - TABLE) as usize;
        self.table[begin..begin + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
    fn compare_exchange(&mut self, at: u64, bytes: usize, old: u64, new: u64) -> Result<Result<(), u64>, Rejected> {
        if self.races > 0 {
            self.races -= 1;
            let now = self.load(at, bytes)?;
            self.store(at, bytes, now ^ 0x20)?;
        }
        let seen = self.load(at, bytes)?;
        if seen != old {
            return Ok(Err(seen));
        }
        self.store(at, bytes, new).map(Ok)
    }
}

const DONE: Outcome = Outcome::Done { single_step: false };

fn run(code: &[u8], change: impl FnOnce(&mut Guest, &mut Registers)) -> (Guest, Registers, Outcome) {
    let mut guest = Guest::new(code);
    let mut registers = guest.registers();
    change(&mut guest, &mut registers);
    let outcome = privileged(&mut registers, &mut guest);
    (guest, registers, outcome)
}

fn run_store(code: &[u8], change: impl FnOnce(&mut Guest, &mut Registers)) -> (Guest, Registers, Outcome) {
    let mut guest = Guest::new(code);
    let mut registers = guest.registers();
    registers.gpr[gpr::RDI] = TABLE + 8;
    change(&mut guest, &mut registers);
    let outcome = store(&mut registers, &mut guest, TABLE + 8);
    (guest, registers, outcome)
}

#[test]
fn ports_give_as_many_bytes_as_asked() {
    let (_, registers, outcome) = run(&[0xe4, 0x70], |_, r| r.gpr[0] = 0xffff_ffff_ffff_ffff);
    assert_eq!(
        (outcome, registers.gpr[0], registers.rip),
        (DONE, 0xffff_ffff_ffff_ff70, CODE + 2)
    );
    let (_, registers, _) = run(&[0xed], |_, r| (r.gpr[0], r.gpr[2]) = (!0, 0x71));
    assert_eq!(registers.gpr[0], 0x1234_5671);
    let (guest, _, _) = run(&[0x66, 0xef], |_, r| (r.gpr[0], r.gpr[2]) = (0xabcdef, 0xcf8));
    assert_eq!(guest.log, [(0xcf8, 0xcdef)]);
}

#[test]
fn a_closed_port_is_the_guests_own_fault() {
    let (_, registers, outcome) = run(&[0xee], |_, r| r.gpr[2] = 0x2000);
    assert_eq!((outcome, registers.rip), (Outcome::NotOurs, CODE));
}

#[test]
fn repeated_port_reads_fill_memory_and_stop_at_a_fault() {
    let (guest, registers, outcome) = run(&[0xf3, 0x6d], |_, r| {
        (r.gpr[gpr::RCX], r.gpr[gpr::RDX], r.gpr[gpr::RDI]) = (3, 0x1f0, DATA);
    });
    assert_eq!(
        (outcome, registers.gpr[gpr::RCX], registers.gpr[gpr::RDI]),
        (DONE, 0, DATA + 12)
    );
    assert_eq!(guest.data[8..12], 0x1234_56f0u32.to_le_bytes());
    let (_, registers, outcome) = run(&[0xf3, 0x6d], |_, r| {
        (r.gpr[gpr::RCX], r.gpr[gpr::RDX], r.gpr[gpr::RDI]) = (9, 0x1f0, DATA + 4088);
    });
    assert_eq!(
        outcome,
        Outcome::Exception(Exception::PageFault {
            address: DATA + 4096,
            code: 6
        })
    );
    assert_eq!((registers.gpr[gpr::RCX], registers.rip), (7, CODE));
}

#[test]
fn a_long_repetition_gives_others_their_turn() {
    let (guest, registers, outcome) = run(&[0xf3, 0x6e], |_, r| {
        (r.gpr[gpr::RCX], r.gpr[gpr::RDX], r.gpr[gpr::RSI]) = (1000, 0x60, DATA);
    });
    assert_eq!(
        (outcome, registers.gpr[gpr::RCX], registers.rip),
        (Outcome::Again, 744, CODE)
    );
    assert_eq!(guest.log.len(), 256);
}

#[test]
fn control_registers_are_read_and_written() {
    let (guest, registers, outcome) = run(&[0x0f, 0x22, 0xd8], |_, r| r.gpr[0] = 0xabc000);
    assert_eq!((outcome, guest.cr[3], registers.rip), (DONE, 0xabc000, CODE + 3));
    let (_, registers, _) = run(&[0x0f, 0x20, 0xe1], |_, _| {});
    assert_eq!(registers.gpr[1], 0x620);
    let (guest, ..) = run(&[0x0f, 0x06], |g, _| g.cr[0] |= 8);
    assert_eq!(guest.cr[0] & 8, 0);
    assert_eq!(run(&[0x44, 0x0f, 0x22, 0xc0], |_, _| {}).2, Outcome::NotOurs);
}

#[test]
fn user_code_may_not() {
    let privileged: [&[u8]; 5] = [
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x06],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x09],
    ];
    for code in privileged {
        let (_, registers, outcome) = run(code, |g, _| g.is_kernel = false);
        assert_eq!(
            (outcome, registers),
            (Outcome::NotOurs, Guest::new(&[]).registers()),
            "{code:x?}"
        );
    }
    assert_eq!(run(&[0xfa], |g, _| g.iopl = false).2, Outcome::NotOurs);
    assert_eq!(run(&[0xfb], |_, _| {}).2, DONE);
}

#[test]
fn model_specific_registers_come_in_halves() {
    let (_, registers, _) = run(&[0x0f, 0x32], |_, r| r.gpr[gpr::RCX] = 0xc000_0080);
    assert_eq!((registers.gpr[0], registers.gpr[2]), (0xd01, 0));
    let (guest, ..) = run(&[0x0f, 0x30], |_, r| (r.gpr[0], r.gpr[1], r.gpr[2]) = (!0, 0x10, 1));
    assert_eq!(guest.msrs[&0x10], 0x1_ffff_ffff);
    let (_, registers, outcome) = run(&[0x0f, 0x32], |_, r| r.gpr[gpr::RCX] = 5);
    assert_eq!((outcome, registers.rip), (Outcome::Exception(Exception::GP), CODE));
}

#[test]
fn tracing_is_told() {
    let (_, registers, outcome) = run(&[0x0f, 0xa2], |_, r| r.rflags |= flag::TF | flag::RF);
    assert_eq!(
        (outcome, registers.rflags),
        (Outcome::Done { single_step: true }, 0x302)
    );
}

#[test]
fn what_stock_xen_does_not_carry_out_faults() {
    // hlt; lmsw ax; invd; invlpg [rax]; rdpmc
    let others: [&[u8]; 5] = [
        &[0xf4],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x08],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x33],
    ];
    for code in others {
        assert_eq!(run(code, |_, _| {}).2, Outcome::NotOurs, "{code:x?}");
    }
}

#[test]
fn the_forced_prefix_asks_us() {
    let code = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];
    let mut guest = Guest::new(&code);
    let mut registers = guest.registers();
    (registers.gpr[0], registers.gpr[1]) = (0x4000_0000, 5);
    assert_eq!(forced_cpuid(&mut registers, &mut guest), DONE);
    assert_eq!(registers.gpr[..4], [0x4000_0000, 1, 7, 5]);
    assert_eq!(registers.rip, CODE + 7);
    let mut plain = Guest::new(&[0x0f, 0x0b, 0x90]);
    let mut registers = plain.registers();
    assert_eq!(forced_cpuid(&mut registers, &mut plain), Outcome::NotOurs);
}

#[test]
fn operands_may_be_relative_to_a_segment_or_to_the_code() {
    let (guest, ..) = run(&[0x65, 0x6e], |g, r| {
        g.data[16] = 7;
        (r.gpr[gpr::RDX], r.gpr[gpr::RSI]) = (0x60, 16);
    });
    assert_eq!(guest.log, [(0x60, 7)]);
    let away = ((TABLE + 8).wrapping_sub(CODE + 7) as u32).to_le_bytes();
    let code = [&[0x48, 0x89, 0x05], &away[..]].concat();
    let (guest, _, outcome) = run_store(&code, |_, r| r.gpr[0] = 0x67);
    assert_eq!((outcome, guest.entry(1)), (DONE, 0x67));
}

#[test]
fn code_is_fetched_no_further_than_needed() {
    let mut guest = Guest::new(&[0x90; 4094]);
    guest.code.extend([0x0f, 0x06]);
    let mut registers = Registers {
        rip: CODE + 4094,
        ..guest.registers()
    };
    assert_eq!(privileged(&mut registers, &mut guest), DONE);
    let mut guest = Guest::new(&[0x90; 4095]);
    guest.code.extend([0x0f]);
    let mut registers = Registers {
        rip: CODE + 4095,
        ..guest.registers()
    };
    let fault = Exception::PageFault {
        address: CODE + 4096,
        code: 0x14,
    };
    assert_eq!(privileged(&mut registers, &mut guest), Outcome::Exception(fault));
}

#[test]
fn plain_stores_reach_the_entry() {
    let (guest, registers, outcome) = run_store(&[0x48, 0x89, 0x07], |_, r| r.gpr[0] = 0x8000_0000_1234_5067);
    assert_eq!(
        (outcome, guest.entry(1), registers.rip),
        (DONE, 0x8000_0000_1234_5067, CODE + 3)
    );
    let (guest, ..) = run_store(&[0x48, 0xc7, 0x07, 0xfe, 0xff, 0xff, 0xff], |_, _| {});
    assert_eq!(guest.entry(1), 0xffff_ffff_ffff_fffe);
    let (guest, ..) = run_store(&[0x88, 0x67, 0x01], |_, r| r.gpr[0] = 0xab00);
    assert_eq!(guest.entry(1), 0xab00);
}

#[test]
fn exchanges_give_the_old_entry() {
    let (guest, registers, outcome) = run_store(&[0x48, 0x87, 0x07], |g, r| {
        g.table[8] = 0x67;
        r.gpr[0] = 0x1000;
    });
    assert_eq!((outcome, guest.entry(1), registers.gpr[0]), (DONE, 0x1000, 0x67));
}

#[test]
fn compare_exchange_tells_success_by_zf() {
    let code = [0xf0, 0x48, 0x0f, 0xb1, 0x0f];
    let (guest, registers, _) = run_store(&code, |g, r| {
        g.table[8] = 0x67;
        (r.gpr[0], r.gpr[1]) = (0x67, 0x2065);
    });
    assert_eq!((guest.entry(1), registers.gpr[0]), (0x2065, 0x67));
    assert_ne!(registers.rflags & flag::ZF, 0);
    let (guest, registers, _) = run_store(&code, |g, r| {
        g.table[8] = 0x27;
        (r.gpr[0], r.gpr[1]) = (0x67, 0x2065);
    });
    assert_eq!(
        (guest.entry(1), registers.gpr[0], registers.rflags & flag::ZF),
        (0x27, 0x27, 0)
    );
    let (guest, registers, _) = run_store(&[0xf0, 0x0f, 0xc7, 0x0f], |_, r| (r.gpr[1], r.gpr[3]) = (0x11, 0x22));
    assert_eq!(
        (guest.entry(1), registers.rflags & flag::ZF),
        (0x11_0000_0022, flag::ZF)
    );
}

#[test]
fn arithmetic_survives_a_race() {
    let code = [0xf0, 0x48, 0x83, 0x27, 0xfd];
    let (guest, registers, outcome) = run_store(&code, |g, _| {
        g.table[8] = 0x47;
        g.races = 3;
    });
    assert_eq!((outcome, guest.entry(1), registers.rflags & flag::ZF), (DONE, 0x65, 0));
    let (_, registers, outcome) = run_store(&code, |g, _| g.races = 99);
    assert_eq!((outcome, registers.rip), (Outcome::Again, CODE));
}

#[test]
fn bits_are_set_and_cleared_also_by_a_far_number() {
    let (guest, registers, _) = run_store(&[0xf0, 0x48, 0x0f, 0xba, 0x37, 0x01], |g, _| g.table[8] = 0x67);
    assert_eq!((guest.entry(1), registers.rflags & flag::CF), (0x65, 1));
    // From 64 bits before the entry, and from a page before it.
    let (guest, ..) = run_store(&[0x48, 0x0f, 0xab, 0x07], |_, r| (r.gpr[0], r.gpr[7]) = (64 + 5, TABLE));
    assert_eq!(guest.entry(1), 0x20);
    let (guest, _, outcome) = run_store(&[0x48, 0x0f, 0xab, 0x07], |_, r| {
        (r.gpr[0], r.gpr[7]) = (-(4096i64 * 8 - 64) as u64, TABLE + 4096);
    });
    assert_eq!((outcome, guest.entry(1)), (DONE, 1));
}

#[test]
fn a_string_fills_the_page_and_goes_no_further() {
    let (guest, registers, outcome) = run_store(&[0xf3, 0x48, 0xab], |_, r| (r.gpr[0], r.gpr[1]) = (0x5, 1000));
    assert_eq!(
        (outcome, registers.gpr[gpr::RDI], registers.gpr[gpr::RCX]),
        (Outcome::Again, TABLE + 4096, 1000 - 511)
    );
    assert_eq!((guest.entry(0), guest.entry(511)), (0, 5));
    let (guest, registers, outcome) = run_store(&[0x48, 0xa5], |g, r| {
        g.data[16] = 9;
        r.gpr[gpr::RSI] = DATA + 16;
    });
    assert_eq!((outcome, guest.entry(1)), (DONE, 9));
    assert_eq!(
        (registers.gpr[gpr::RSI], registers.gpr[gpr::RDI]),
        (DATA + 24, TABLE + 16)
    );
}

#[test]
fn stores_elsewhere_or_askew_are_not_ours() {
    for at in [DATA, TABLE + 4096, TABLE + 9] {
        let (_, registers, outcome) = run_store(&[0x48, 0x89, 0x07], |_, r| r.gpr[gpr::RDI] = at);
        assert_eq!((outcome, registers.rip), (Outcome::NotOurs, CODE));
    }
    // movups [rdi], xmm0; push [rdi]; call [rdi]; mov [rdi], ds
    let others: [&[u8]; 4] = [&[0x0f, 0x11, 0x07], &[0xff, 0x37], &[0xff, 0x17], &[0x8c, 0x1f]];
    for code in others {
        assert_eq!(run_store(code, |_, _| {}).2, Outcome::NotOurs, "{code:x?}");
    }
}

#[test]
fn flags_are_the_processors() {
    use crate::registers::{add, subtract};
    assert_eq!(add(0xff, 1, false, 1), (0, flag::CF | flag::ZF | flag::AF | flag::PF));
    assert_eq!(add(0x7f, 1, false, 1), (0x80, flag::OF | flag::SF | flag::AF));
    assert_eq!(
        subtract(0, 1, false, 8),
        (!0, flag::CF | flag::SF | flag::AF | flag::PF)
    );
    assert_eq!(subtract(0x80, 1, false, 1), (0x7f, flag::OF | flag::AF));
    assert_eq!(
        subtract(5, 5, true, 4),
        (0xffff_ffff, flag::CF | flag::SF | flag::AF | flag::PF)
    );
}

const PREFIXES: &[&[u8]] = &[
    &[],
    &[0x0f],
    &[0x0f, 0x01],
    &[0xf3],
    &[0x48],
    &[0x65, 0x48],
    &[0x67],
    &[0x66, 0xf2],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn no_bytes_panic_or_are_fetched_twice(
        prefix in prop::sample::select(PREFIXES),
        rest in prop::collection::vec(any::<u8>(), 1..16), gprs: [u64; 16], near: bool, wide: bool, is_kernel: bool, offset in 0u64..4096,
    ) {
        let code: Vec<u8> = prefix.iter().copied().chain(rest).collect();
        for stores in [false, true] {
            let mut guest = Guest::new(&code);
            (guest.wide, guest.is_kernel) = (wide, is_kernel);
            let mut registers = Registers { gpr: gprs, ..guest.registers() };
            if near {
                registers.gpr[gpr::RDI] = TABLE + offset;
                registers.gpr[0] = TABLE + offset / 8 * 8;
                registers.gpr[gpr::RSI] = DATA + offset;
            }
            let before = registers;
            let outcome = match stores {
                true => store(&mut registers, &mut guest, TABLE + offset),
                false => privileged(&mut registers, &mut guest),
            };
            prop_assert!(guest.fetched <= 15);
            match outcome {
                Outcome::NotOurs => prop_assert_eq!(registers, before),
                Outcome::Done { .. } => {
                    let length = registers.rip.wrapping_sub(before.rip);
                    prop_assert!((1..=15).contains(&length));
                }
                Outcome::Again | Outcome::Exception(_) => prop_assert_eq!(registers.rip, before.rip),
            }
        }
    }
}

/// What is recognised without the decoder of all instructions is what that would make of it.
#[test]
fn a_plain_store_is_what_the_decoder_says() {
    let mut recognised = 0;
    for (rex, modrm) in (0x40..=0x4f_u8).flat_map(|rex| (0..=255_u8).map(move |modrm| (rex, modrm))) {
        let mut guest = Guest::new(&[rex, 0x89, modrm, 0xf1, 0x82, 0x93, 0xa4]);
        let registers = Registers {
            gpr: core::array::from_fn(|number| (number as u64 + 1) << 32),
            ..guest.registers()
        };
        let code = fetch(&registers, &mut guest).unwrap();
        let Some(plain) = plain::decode(&code, &registers) else {
            continue;
        };
        recognised += 1;
        let instruction = decode(code, &registers, &mut guest).unwrap();
        assert_eq!(instruction.mnemonic(), iced_x86::Mnemonic::Mov);
        assert_eq!(instruction.memory_size(), iced_x86::MemorySize::UInt64);
        assert_eq!(plain.next_ip, instruction.next_ip());
        assert_eq!(address(&instruction, 0, &registers, &guest), Some(plain.at));
        assert_eq!(registers.get(instruction.op1_register()), Some(plain.value));
    }
    // REX.W with R, X and B; a source; a base but rsp and r12; no distance (but of rbp and r13), a short, a long one.
    assert_eq!(recognised, 8 * 8 * (6 + 7 + 7));
}

#[test]
fn a_plain_store_at_the_end_of_a_page_is_left_to_the_decoder() {
    let mut guest = Guest::new(&[0x48, 0x89, 0x07]);
    let registers = Registers {
        rip: CODE + 4096 - 3,
        ..guest.registers()
    };
    let code = fetch(&registers, &mut guest).unwrap();
    assert_eq!(plain::decode(&code, &registers), None);
}
