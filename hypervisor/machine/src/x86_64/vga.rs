//! The text screen of 80 by 25, as firmware left it.
//!
//! Scrolling moves the start address through the adapter's 32 KiB and copies the screen back to the top only once
//! it has run through them: writing to video memory is slow, reading is slower, so a copy of the last screenful is
//! kept here.

use ferroxen_words::Maddr;
use spin::{Mutex, Once};

use super::paging::{self, Mmio};
use super::port::{inb, lock, outb};

const BASE: Maddr = Maddr::new(0xb8000);
const PAGES: usize = 8;
const COLUMNS: usize = 80;
const ROWS: usize = 25;
const SCREEN: usize = COLUMNS * ROWS;
/// Whole rows that fit into 32 KiB.
const MEMORY_ROWS: usize = PAGES * 4096 / 2 / COLUMNS;
const TAB: usize = 8;
/// Light grey on black.
const BLANK: u16 = 0x0720;

const CRTC_INDEX: u16 = 0x3d4;
const CRTC_DATA: u16 = 0x3d5;
const START_HIGH: u8 = 0x0c;
const CURSOR_HIGH: u8 = 0x0e;

struct Screen {
    /// Blank once the screen is ours; zeroes before that, which the image need not hold.
    cells: [u16; SCREEN],
    /// Row of video memory that the screen's first row shows.
    top: usize,
    row: usize,
    column: usize,
    is_ours: bool,
}

static MEMORY: Once<Mmio> = Once::new();
static STATE: Mutex<Screen> = Mutex::new(Screen {
    cells: [0; SCREEN],
    top: 0,
    row: 0,
    column: 0,
    is_ours: false,
});

/// Takes the screen into use and clears it. `false` if there is no colour adapter.
pub fn init() -> bool {
    // SAFETY: the adapter's miscellaneous output register only answers.
    let miscellaneous = unsafe { inb(0x3cc) };
    if miscellaneous == 0xff || miscellaneous & 1 == 0 {
        return false;
    }
    MEMORY.call_once(|| paging::map_mmio(BASE, PAGES));
    let mut screen = lock(&STATE);
    screen.is_ours = true;
    screen.cells.fill(BLANK);
    screen.redraw_at(0);
    screen.show_cursor();
    true
}

/// Writes text; bytes that are no printable ASCII show as blots.
pub fn write(text: &[u8]) {
    let mut screen = lock(&STATE);
    screen.write(text);
}

/// Writes without asking who else is writing, if nobody holds the screen: for the last words of a host that stops.
pub fn write_regardless(text: &[u8]) {
    if let Some(mut screen) = STATE.try_lock() {
        screen.write(text);
    }
}

/// Hands the screen to Domain 0: what it shows stays, at the start of video memory, and we write no more.
///
/// Returns the cursor's row and column.
pub fn release() -> Option<(u8, u8)> {
    let mut screen = lock(&STATE);
    if !screen.is_ours {
        return None;
    }
    screen.redraw_at(0);
    screen.show_cursor();
    screen.is_ours = false;
    Some((u8::try_from(screen.row).ok()?, u8::try_from(screen.column).ok()?))
}

impl Screen {
    fn write(&mut self, text: &[u8]) {
        if !self.is_ours {
            return;
        }
        for byte in text {
            match byte {
                b'\n' => self.next_line(),
                b'\r' => self.column = 0,
                b'\t' => {
                    for _ in 0..TAB - self.column % TAB {
                        self.put(b' ');
                    }
                }
                b' '..=b'~' => self.put(*byte),
                _ => self.put(0xfe),
            }
        }
        self.show_cursor();
    }

    fn put(&mut self, character: u8) {
        if self.column == COLUMNS {
            self.next_line();
        }
        let cell = self.row * COLUMNS + self.column;
        if let Some(slot) = self.cells.get_mut(cell) {
            *slot = BLANK & 0xff00 | u16::from(character);
        }
        self.draw_pair(cell / 2);
        self.column += 1;
    }

    fn next_line(&mut self) {
        self.column = 0;
        if self.row + 1 < ROWS {
            self.row += 1;
            return;
        }
        self.cells.copy_within(COLUMNS.., 0);
        if let Some(last) = self.cells.last_chunk_mut::<COLUMNS>() {
            last.fill(BLANK);
        }
        if self.top + ROWS < MEMORY_ROWS {
            self.top += 1;
            for pair in (SCREEN - COLUMNS) / 2..SCREEN / 2 {
                self.draw_pair(pair);
            }
            set_crtc(START_HIGH, self.top * COLUMNS);
        } else {
            self.redraw_at(0);
        }
    }

    fn redraw_at(&mut self, top: usize) {
        self.top = top;
        for pair in 0..SCREEN / 2 {
            self.draw_pair(pair);
        }
        set_crtc(START_HIGH, top * COLUMNS);
    }

    /// Writes two neighbouring cells to video memory at once.
    fn draw_pair(&self, pair: usize) {
        let (Some(memory), Some(&[left, right])) = (
            MEMORY.get(),
            self.cells.get(pair * 2..).and_then(|cells| cells.first_chunk::<2>()),
        ) else {
            return;
        };
        memory.write32(
            self.top * COLUMNS * 2 + pair * 4,
            u32::from(right) << 16 | u32::from(left),
        );
    }

    fn show_cursor(&self) {
        let column = self.column.min(COLUMNS - 1);
        set_crtc(CURSOR_HIGH, (self.top + self.row) * COLUMNS + column);
    }
}

/// Sets a 16-bit register of the display controller: high half at `index`, low half at the next.
fn set_crtc(index: u8, value: usize) {
    let [low, high, ..] = value.to_le_bytes();
    // SAFETY: moves the picture or the cursor; the adapter stays in its mode.
    unsafe {
        outb(CRTC_INDEX, index);
        outb(CRTC_DATA, high);
        outb(CRTC_INDEX, index + 1);
        outb(CRTC_DATA, low);
    }
}
