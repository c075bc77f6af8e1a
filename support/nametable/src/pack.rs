//! Makes a table: the pair of tokens that is most often seen becomes one token, again and again.

extern crate alloc;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::{BLOCK, DEEPEST, LETTER, LONGEST};

/// What a token must be good for: its pair takes three bytes, and each use saves about one.
const SEEN_AT_LEAST: i32 = 4;
/// There is no number for more; the last stands for a letter.
const MOST_TOKENS: usize = LETTER as usize;

type Pair = (u16, u16);

/// What a token stands for.
#[derive(Clone, Copy)]
enum Token {
    Letter(u8),
    Pair(Pair),
}

/// Packs names by their addresses, which ascend.
///
/// # Panics
/// If a name has more than [`LONGEST`] bytes, or addresses descend or are 2^28 apart.
pub fn pack(names: &[(u32, &str)]) -> Vec<u8> {
    let (tokens, rows) = shared(names.iter().map(|(_, name)| name.as_bytes()));
    let order = by_use(&tokens, &rows);
    let place: BTreeMap<u16, u16> = order.iter().copied().zip(0..).collect();
    let singles = singles(order.len());

    let mut table = Vec::new();
    table.extend(u32::try_from(names.len()).expect("few names").to_le_bytes());
    table.extend((order.len() as u16).to_le_bytes());
    table.extend(singles.to_le_bytes());
    for token in &order {
        let (first, second) = match tokens[usize::from(*token)] {
            Token::Letter(letter) => (LETTER, letter.into()),
            Token::Pair((first, second)) => (place[&first], place[&second]),
        };
        let both = u32::from(first) | u32::from(second) << 12;
        table.extend(&both.to_le_bytes()[..3]);
    }
    let mut written = Vec::new();
    for (names, rows) in names.chunks(BLOCK).zip(rows.chunks(BLOCK)) {
        let mut before = names[0].0;
        table.extend(before.to_le_bytes());
        table.extend(u32::try_from(written.len()).expect("few names").to_le_bytes());
        for ((address, name), row) in names.iter().zip(rows) {
            assert!(name.len() <= LONGEST, "a name that is too long: {name}");
            put_distance(address.checked_sub(before).expect("addresses ascend"), &mut written);
            before = *address;
            let mut bytes = Vec::new();
            for token in row {
                put_token(place[token], singles, &mut bytes);
            }
            written.push(u8::try_from(bytes.len()).expect("a token takes two bytes at most"));
            written.extend(bytes);
        }
    }
    table.extend(written);
    table
}

/// Finds what names share: tokens, and each name in them.
fn shared<'a>(names: impl Iterator<Item = &'a [u8]>) -> (Vec<Token>, Vec<Vec<u16>>) {
    let mut tokens: Vec<Token> = (0..=u8::MAX).map(Token::Letter).collect();
    let mut depths = alloc::vec![1; tokens.len()];
    let mut rows: Vec<Vec<u16>> = names
        .map(|name| name.iter().map(|&letter| letter.into()).collect())
        .collect();
    let mut seen: BTreeMap<Pair, i32> = BTreeMap::new();
    for row in &rows {
        for pair in row.windows(2) {
            *seen.entry((pair[0], pair[1])).or_default() += 1;
        }
    }
    let deeper = |(first, second): Pair, depths: &[usize]| -> usize {
        1 + depths[usize::from(first)].max(depths[usize::from(second)])
    };
    while tokens.len() < MOST_TOKENS {
        // Of pairs that are seen equally often, the first: the same names make the same table.
        let mut best = None;
        for (&pair, &often) in &seen {
            let most = best.map_or(SEEN_AT_LEAST - 1, |(_, most)| most);
            if often > most && deeper(pair, &depths) <= DEEPEST {
                best = Some((pair, often));
            }
        }
        let Some((pair, _)) = best else { break };
        let token = tokens.len() as u16;
        tokens.push(Token::Pair(pair));
        depths.push(deeper(pair, &depths));
        for row in &mut rows {
            join(row, pair, token, &mut seen);
        }
        seen.retain(|_, often| *often > 0);
        seen.remove(&pair);
    }
    (tokens, rows)
}

/// Writes a token in place of each of its pairs, and counts what is seen anew. (Three of a kind may be counted twice, which
/// costs some bytes at most.)
fn join(row: &mut Vec<u16>, pair: Pair, token: u16, seen: &mut BTreeMap<Pair, i32>) {
    let mut at = 0;
    while at + 1 < row.len() {
        if (row[at], row[at + 1]) == pair {
            let mut count = |pair: Pair, by: i32| *seen.entry(pair).or_default() += by;
            if let Some(&before) = at.checked_sub(1).and_then(|before| row.get(before)) {
                count((before, pair.0), -1);
                count((before, token), 1);
            }
            if let Some(&after) = row.get(at + 2) {
                count((pair.1, after), -1);
                count((token, after), 1);
            }
            row[at] = token;
            row.remove(at + 1);
        }
        at += 1;
    }
}

/// The tokens that are needed, those first that names have most often.
fn by_use(tokens: &[Token], rows: &[Vec<u16>]) -> Vec<u16> {
    let mut uses = alloc::vec![0; tokens.len()];
    for &token in rows.iter().flatten() {
        uses[usize::from(token)] += 1;
    }
    let mut needed: Vec<bool> = uses.iter().map(|&uses| uses > 0).collect();
    for (number, token) in tokens.iter().enumerate().rev() {
        if let (true, Token::Pair((first, second))) = (needed[number], token) {
            needed[usize::from(*first)] = true;
            needed[usize::from(*second)] = true;
        }
    }
    let mut order: Vec<u16> = (0..tokens.len() as u16)
        .filter(|&token| needed[usize::from(token)])
        .collect();
    order.sort_by_key(|&token| core::cmp::Reverse(uses[usize::from(token)]));
    order
}

/// How many tokens take one byte, so that all others can take two.
fn singles(tokens: usize) -> u16 {
    (256 - tokens.saturating_sub(256).div_ceil(255)) as u16
}

fn put_token(token: u16, singles: u16, bytes: &mut Vec<u8>) {
    match token.checked_sub(singles) {
        None => bytes.push(token as u8),
        Some(above) => bytes.extend([(singles + (above >> 8)) as u8, above as u8]),
    }
}

fn put_distance(mut distance: u32, bytes: &mut Vec<u8>) {
    assert!(distance < 1 << 28, "names that are too far apart");
    while distance >= 0x80 {
        bytes.push(distance as u8 | 0x80);
        distance >>= 7;
    }
    bytes.push(distance as u8);
}
