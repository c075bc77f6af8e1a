//! The part of `.xz` that kernels are packed with: LZMA2, the x86 branch filter, CRC32.
//!
//! Own code, where the sibling formats use other people's, for two reasons measured in memory: the
//! crates at hand want a window of the size named in the header (32 MiB for Debian's kernels,
//! 128 MiB for newer ones) beside the output, and build a decoder of 30 KiB on the stack, which is
//! all the stack a CPU has in the hypervisor. Here the output is the window, and the state is on the heap.
//!
//! Format: "The .xz File Format" (tukaani.org), and the LZMA specification for the range coder.

use super::Refused;
use alloc::vec;
use alloc::vec::Vec;

/// Unpacks the one stream in `packed` into the front of `out` and gives its length.
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<usize, Refused> {
    let mut input = Input { bytes: packed, at: 0 };
    let check = stream_header(&mut input)?;
    let mut lzma = Lzma::new();
    let mut records: Vec<(u64, u64)> = Vec::new();
    let mut done = 0usize;
    while input.peek()? != 0 {
        let begin = input.at;
        let header = block_header(&mut input)?;
        let target = out.get_mut(done..).ok_or(BROKEN)?;
        let body = input.at;
        let length = lzma2(&mut input, &mut lzma, target)?;
        header.agrees((input.at - body) as u64, length as u64)?;
        let block = target.get_mut(..length).ok_or(BROKEN)?;
        if header.branches {
            undo_branch_filter(block);
        }
        let unpadded = (input.at - begin) as u64 + check.len() as u64;
        input.pad()?;
        if check == Check::Crc32 && input.le32()? != crc32fast::hash(block) {
            return Err(Refused::Checksum("xz"));
        }
        if records.len() >= 4096 {
            return Err(BROKEN);
        }
        records.push((unpadded, length as u64));
        done += length;
    }
    index_and_footer(&mut input, &records)?;
    Ok(done)
}

const BROKEN: Refused = Refused::Broken("xz");

#[derive(Clone, Copy, PartialEq, Eq)]
enum Check {
    None,
    Crc32,
}

impl Check {
    fn len(self) -> usize {
        match self {
            Check::None => 0,
            Check::Crc32 => 4,
        }
    }
}

fn stream_header(input: &mut Input<'_>) -> Result<Check, Refused> {
    let header = input.take(12)?;
    let flags = header.get(6..8).ok_or(BROKEN)?;
    if !header.starts_with(super::XZ_MAGIC) || crc32fast::hash(flags) != le32_at(header, 8)? {
        return Err(BROKEN);
    }
    match *flags {
        [0, 0] => Ok(Check::None),
        [0, 1] => Ok(Check::Crc32),
        _ => Err(Refused::Unsupported("xz with a check other than CRC32")),
    }
}

struct BlockHeader {
    packed: Option<u64>,
    unpacked: Option<u64>,
    branches: bool,
}

impl BlockHeader {
    fn agrees(&self, packed: u64, unpacked: u64) -> Result<(), Refused> {
        let same = |told: Option<u64>, found| told.is_none_or(|told| told == found);
        if same(self.packed, packed) && same(self.unpacked, unpacked) {
            Ok(())
        } else {
            Err(BROKEN)
        }
    }
}

fn block_header(input: &mut Input<'_>) -> Result<BlockHeader, Refused> {
    let length = (usize::from(input.peek()?) + 1) * 4;
    let header = input.take(length)?;
    let covered = header.get(..length - 4).ok_or(BROKEN)?;
    if crc32fast::hash(covered) != le32_at(header, length - 4)? {
        return Err(Refused::Checksum("xz"));
    }
    let mut fields = Input { bytes: covered, at: 1 };
    let flags = fields.byte()?;
    if flags & 0x3c != 0 {
        return Err(Refused::Unsupported("xz block flags"));
    }
    let packed = if flags & 0x40 != 0 {
        Some(fields.number()?)
    } else {
        None
    };
    let unpacked = if flags & 0x80 != 0 {
        Some(fields.number()?)
    } else {
        None
    };
    let mut branches = false;
    let filters = (flags & 3) + 1;
    for filter in 0..filters {
        let id = fields.number()?;
        let length = usize::try_from(fields.number()?).map_err(|_| BROKEN)?;
        let properties = fields.take(length)?;
        let last = filter + 1 == filters;
        match (id, last) {
            (0x21, true) if length == 1 => {}
            (0x04, false) if !branches && (length == 0 || properties == [0; 4]) => branches = true,
            _ => return Err(Refused::Unsupported("xz filter other than LZMA2 and x86")),
        }
    }
    if fields.rest().iter().any(|&byte| byte != 0) {
        return Err(BROKEN);
    }
    Ok(BlockHeader {
        packed,
        unpacked,
        branches,
    })
}

fn index_and_footer(input: &mut Input<'_>, blocks: &[(u64, u64)]) -> Result<(), Refused> {
    let begin = input.at;
    input.byte()?;
    if input.number()? != blocks.len() as u64 {
        return Err(BROKEN);
    }
    for &(unpadded, unpacked) in blocks {
        if input.number()? != unpadded || input.number()? != unpacked {
            return Err(BROKEN);
        }
    }
    // The stream header is 12 bytes and every block a multiple of 4, so this pads the index, too.
    input.pad()?;
    let index = input.bytes.get(begin..input.at).ok_or(BROKEN)?;
    if input.le32()? != crc32fast::hash(index) {
        return Err(Refused::Checksum("xz"));
    }
    let footer = input.take(12)?;
    let covered = footer.get(4..10).ok_or(BROKEN)?;
    let sound = footer.ends_with(b"YZ") && le32_at(footer, 0)? == crc32fast::hash(covered);
    if sound { Ok(()) } else { Err(BROKEN) }
}

/// Runs the chunks of one LZMA2 stream; `out` is also the dictionary.
fn lzma2(input: &mut Input<'_>, lzma: &mut Lzma, out: &mut [u8]) -> Result<usize, Refused> {
    let mut window = Window { out, at: 0, start: 0 };
    let (mut needs_dictionary, mut needs_properties, mut needs_state) = (true, true, true);
    loop {
        let control = input.byte()?;
        if control == 0 {
            return Ok(window.at);
        }
        if control >= 0xe0 || control == 1 {
            needs_dictionary = false;
            window.start = window.at;
        } else if needs_dictionary {
            return Err(BROKEN);
        }
        if control >= 0x80 {
            let low = input.be16()?;
            let length = (usize::from(control & 0x1f) << 16) + low + 1;
            let packed = input.be16()? + 1;
            if control >= 0xc0 {
                lzma.set_properties(input.byte()?)?;
                needs_properties = false;
            } else if needs_properties {
                return Err(BROKEN);
            }
            if control >= 0xa0 {
                lzma.reset_state();
                needs_state = false;
            } else if needs_state {
                return Err(BROKEN);
            }
            let end = window.at.checked_add(length).ok_or(BROKEN)?;
            if end > window.out.len() {
                return Err(Refused::LargerThanTold);
            }
            lzma.chunk(input.take(packed)?, &mut window, end)?;
        } else if control <= 2 {
            let length = input.be16()? + 1;
            let plain = input.take(length)?;
            let target = window
                .out
                .get_mut(window.at..window.at + length)
                .ok_or(Refused::LargerThanTold)?;
            target.copy_from_slice(plain);
            window.at += length;
        } else {
            return Err(BROKEN);
        }
    }
}

struct Window<'a> {
    out: &'a mut [u8],
    at: usize,
    start: usize,
}

impl Window<'_> {
    fn repeat(&mut self, distance: usize, length: usize) -> Result<(), Refused> {
        if distance >= self.at - self.start {
            return Err(BROKEN);
        }
        let from = self.at - distance - 1;
        let end = self
            .at
            .checked_add(length)
            .filter(|&end| end <= self.out.len())
            .ok_or(BROKEN)?;
        if distance >= length {
            self.out.copy_within(from..from + length, self.at);
        } else {
            // Overlapping on purpose: a byte just written is read again.
            let area = self.out.get_mut(from..end).ok_or(BROKEN)?;
            for to in distance + 1..area.len() {
                area[to] = area[to - distance - 1];
            }
        }
        self.at = end;
        Ok(())
    }

    fn back(&self, distance: usize) -> u8 {
        if distance < self.at - self.start {
            self.out[self.at - distance - 1]
        } else {
            0
        }
    }
}

type Prob = u16;
const HALF: Prob = 1 << 10;

struct Lengths {
    choice: [Prob; 2],
    low: [[Prob; 8]; 16],
    mid: [[Prob; 8]; 16],
    high: [Prob; 256],
}

impl Lengths {
    const FRESH: Lengths = Lengths {
        choice: [HALF; 2],
        low: [[HALF; 8]; 16],
        mid: [[HALF; 8]; 16],
        high: [HALF; 256],
    };

    fn decode(&mut self, rc: &mut RangeCoder<'_>, pos_state: usize) -> usize {
        2 + if !rc.bit(&mut self.choice[0]) {
            rc.tree(&mut self.low[pos_state & 15], 3)
        } else if !rc.bit(&mut self.choice[1]) {
            8 + rc.tree(&mut self.mid[pos_state & 15], 3)
        } else {
            16 + rc.tree(&mut self.high, 8)
        }
    }
}

struct Lzma {
    lc: u32,
    lp_mask: usize,
    pb_mask: usize,
    state: usize,
    reps: [usize; 4],
    literals: Vec<Prob>,
    is_match: [[Prob; 16]; 12],
    is_rep: [Prob; 12],
    is_rep0: [Prob; 12],
    is_rep1: [Prob; 12],
    is_rep2: [Prob; 12],
    is_rep0_long: [[Prob; 16]; 12],
    slots: [[Prob; 64]; 4],
    special: [Prob; 128],
    align: [Prob; 16],
    match_length: Lengths,
    rep_length: Lengths,
}

impl Lzma {
    fn new() -> Lzma {
        Lzma {
            lc: 0,
            lp_mask: 0,
            pb_mask: 0,
            state: 0,
            reps: [0; 4],
            literals: Vec::new(),
            is_match: [[HALF; 16]; 12],
            is_rep: [HALF; 12],
            is_rep0: [HALF; 12],
            is_rep1: [HALF; 12],
            is_rep2: [HALF; 12],
            is_rep0_long: [[HALF; 16]; 12],
            slots: [[HALF; 64]; 4],
            special: [HALF; 128],
            align: [HALF; 16],
            match_length: Lengths::FRESH,
            rep_length: Lengths::FRESH,
        }
    }

    fn set_properties(&mut self, byte: u8) -> Result<(), Refused> {
        if byte > (4 * 5 + 4) * 9 + 8 {
            return Err(BROKEN);
        }
        let (lc, lp, pb) = (byte % 9, byte / 9 % 5, byte / 45);
        if lc + lp > 4 {
            return Err(BROKEN);
        }
        self.lc = u32::from(lc);
        self.lp_mask = (1 << lp) - 1;
        self.pb_mask = (1 << pb) - 1;
        self.literals = vec![HALF; 0x300 << (lc + lp)];
        Ok(())
    }

    fn reset_state(&mut self) {
        let literals = core::mem::take(&mut self.literals);
        *self = Lzma {
            lc: self.lc,
            lp_mask: self.lp_mask,
            pb_mask: self.pb_mask,
            literals,
            ..Lzma::new()
        };
        self.literals.fill(HALF);
    }

    /// Decodes one chunk until the window has reached `end`.
    fn chunk(&mut self, packed: &[u8], window: &mut Window<'_>, end: usize) -> Result<(), Refused> {
        let mut rc = RangeCoder::new(packed)?;
        while window.at < end {
            // Positions count from the dictionary's start, as the encoder's did.
            let pos_state = (window.at - window.start) & self.pb_mask;
            if !rc.bit(&mut self.is_match[self.state][pos_state]) {
                self.literal(&mut rc, window);
                continue;
            }
            let length = if rc.bit(&mut self.is_rep[self.state]) {
                self.repeated(&mut rc, pos_state)
            } else {
                self.fresh_match(&mut rc, pos_state)
            };
            if length > end - window.at {
                return Err(BROKEN);
            }
            window.repeat(self.reps[0], length)?;
        }
        if rc.finished() { Ok(()) } else { Err(BROKEN) }
    }

    fn literal(&mut self, rc: &mut RangeCoder<'_>, window: &mut Window<'_>) {
        let before = usize::from(window.back(0));
        let position = (window.at - window.start) & self.lp_mask;
        let context = (position << self.lc) + (before >> (8 - self.lc));
        let Some(probs) = self.literals.get_mut(context * 0x300..(context + 1) * 0x300) else {
            return;
        };
        let mut symbol = 1usize;
        if self.state >= 7 {
            let mut matched = usize::from(window.back(self.reps[0]));
            while symbol < 0x100 {
                let expected = matched >> 7 & 1;
                matched <<= 1;
                let bit = usize::from(rc.bit(&mut probs[((1 + expected) << 8) + symbol]));
                symbol = symbol << 1 | bit;
                if bit != expected {
                    break;
                }
            }
        }
        while symbol < 0x100 {
            symbol = symbol << 1 | usize::from(rc.bit(&mut probs[symbol]));
        }
        self.state = match self.state {
            0..=3 => 0,
            state @ 4..=9 => state - 3,
            state => state - 6,
        };
        window.out[window.at] = symbol as u8;
        window.at += 1;
    }

    fn fresh_match(&mut self, rc: &mut RangeCoder<'_>, pos_state: usize) -> usize {
        self.state = if self.state < 7 { 7 } else { 10 };
        self.reps = [0, self.reps[0], self.reps[1], self.reps[2]];
        let length = self.match_length.decode(rc, pos_state);
        let slot = rc.tree(&mut self.slots[(length - 2).min(3)], 6);
        self.reps[0] = if slot < 4 {
            slot
        } else {
            let bits = (slot >> 1) as u32 - 1;
            let base = (2 | slot & 1) << bits;
            if slot < 14 {
                base + rc.reverse_tree(&mut self.special, base - slot, bits)
            } else {
                base + (rc.direct(bits - 4) << 4) + rc.reverse_tree(&mut self.align, 0, 4)
            }
        };
        length
    }

    fn repeated(&mut self, rc: &mut RangeCoder<'_>, pos_state: usize) -> usize {
        let [r0, r1, r2, r3] = self.reps;
        let state = self.state;
        if !rc.bit(&mut self.is_rep0[state]) {
            if !rc.bit(&mut self.is_rep0_long[state][pos_state]) {
                self.state = if state < 7 { 9 } else { 11 };
                return 1;
            }
        } else if !rc.bit(&mut self.is_rep1[state]) {
            self.reps = [r1, r0, r2, r3];
        } else if !rc.bit(&mut self.is_rep2[state]) {
            self.reps = [r2, r0, r1, r3];
        } else {
            self.reps = [r3, r0, r1, r2];
        }
        self.state = if state < 7 { 8 } else { 11 };
        self.rep_length.decode(rc, pos_state)
    }
}

struct RangeCoder<'a> {
    range: u32,
    code: u32,
    input: &'a [u8],
    at: usize,
}

impl<'a> RangeCoder<'a> {
    fn new(input: &'a [u8]) -> Result<Self, Refused> {
        match *input {
            [0, a, b, c, d, ..] => Ok(RangeCoder {
                range: !0,
                code: u32::from_be_bytes([a, b, c, d]),
                input,
                at: 5,
            }),
            _ => Err(BROKEN),
        }
    }

    /// A chunk is whole when all its bytes are used up and nothing is left in the coder. Reading past
    /// the end yields zeroes and counts, so that it shows here.
    fn finished(mut self) -> bool {
        self.normalise();
        self.code == 0 && self.at == self.input.len()
    }

    #[inline(always)]
    fn normalise(&mut self) {
        if self.range < 1 << 24 {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(self.input.get(self.at).copied().unwrap_or(0));
            self.at += 1;
        }
    }

    #[inline(always)]
    fn bit(&mut self, prob: &mut Prob) -> bool {
        self.normalise();
        let bound = (self.range >> 11) * u32::from(*prob);
        if self.code < bound {
            self.range = bound;
            *prob += ((1 << 11) - *prob) >> 5;
            false
        } else {
            self.range -= bound;
            self.code -= bound;
            *prob -= *prob >> 5;
            true
        }
    }

    fn direct(&mut self, bits: u32) -> usize {
        let mut value = 0;
        for _ in 0..bits {
            self.normalise();
            self.range >>= 1;
            let one = self.code >= self.range;
            if one {
                self.code -= self.range;
            }
            value = value << 1 | usize::from(one);
        }
        value
    }

    fn tree(&mut self, probs: &mut [Prob], bits: u32) -> usize {
        let mut symbol = 1usize;
        for _ in 0..bits {
            symbol = symbol << 1 | usize::from(self.bit(&mut probs[symbol]));
        }
        symbol - (1 << bits)
    }

    fn reverse_tree(&mut self, probs: &mut [Prob], base: usize, bits: u32) -> usize {
        let (mut symbol, mut value) = (1usize, 0);
        for bit in 0..bits {
            let one = usize::from(self.bit(&mut probs[base + symbol]));
            symbol = symbol << 1 | one;
            value |= one << bit;
        }
        value
    }
}

/// Turns absolute targets of x86 CALL and JMP back into relative ones, in place.
///
/// The encoder converts an operand only when its top byte is a sign extension and no recent opcode
/// byte may lie inside it; `recent` holds which of the last three bytes looked like an opcode.
fn undo_branch_filter(code: &mut [u8]) {
    const SIGN: fn(u8) -> bool = |byte| byte == 0 || byte == 0xff;
    let Some(last) = code.len().checked_sub(5) else {
        return;
    };
    let mut recent = 0u32;
    let mut before: Option<usize> = None;
    let mut at = 0;
    while at <= last {
        if code[at] & 0xfe != 0xe8 {
            at += 1;
            continue;
        }
        let gap = before.map_or(usize::MAX, |before| at - before);
        before = Some(at);
        recent = if gap > 3 { 0 } else { recent << (gap - 1) & 7 };
        let inside = match recent {
            0 => 0,
            1 => 1,
            2 | 3 => 2,
            _ => 3,
        };
        let may = recent == 0 || matches!(recent, 1 | 2 | 4) && !SIGN(code[at + 4 - inside]);
        if !may || !SIGN(code[at + 4]) {
            recent = recent << 1 | 1;
            at += 1;
            continue;
        }
        let mut target = u32::from_le_bytes([code[at + 1], code[at + 2], code[at + 3], code[at + 4]]);
        let next = (at as u32).wrapping_add(5);
        let relative = loop {
            let relative = target.wrapping_sub(next);
            let shift = inside as u32 * 8;
            if recent == 0 || !SIGN((relative >> (24 - shift)) as u8) {
                break relative;
            }
            target = relative ^ ((1 << (32 - shift)) - 1);
        };
        let extended = ((relative << 7) as i32 >> 7) as u32;
        code[at + 1..at + 5].copy_from_slice(&extended.to_le_bytes());
        at += 5;
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or(&[])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refused> {
        let taken = self.rest().get(..count).ok_or(Refused::Truncated("xz"))?;
        self.at += count;
        Ok(taken)
    }

    fn peek(&self) -> Result<u8, Refused> {
        self.rest().first().copied().ok_or(Refused::Truncated("xz"))
    }

    fn byte(&mut self) -> Result<u8, Refused> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn be16(&mut self) -> Result<usize, Refused> {
        Ok(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    fn le32(&mut self) -> Result<u32, Refused> {
        le32_at(self.take(4)?, 0)
    }

    /// A number in groups of seven bits, lowest first, nine groups at most.
    fn number(&mut self) -> Result<u64, Refused> {
        let mut value = 0;
        for group in 0..9 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BROKEN)
    }

    /// Skips to a multiple of four, over zeroes only.
    fn pad(&mut self) -> Result<(), Refused> {
        while !self.at.is_multiple_of(4) {
            if self.byte()? != 0 {
                return Err(BROKEN);
            }
        }
        Ok(())
    }
}

fn le32_at(bytes: &[u8], at: usize) -> Result<u32, Refused> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(BROKEN)?;
    Ok(u32::from_le_bytes(*field))
}
