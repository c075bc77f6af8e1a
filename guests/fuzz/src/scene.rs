//! What the calls are about: pages to play with, places to map them at, roots to run on.
//!
//! Everything is named by its number. What lies behind a number changes as the calls do their work, and is looked up
//! when a call is made.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::abi::event_channel::evtchnop;
use pv::event::SELF;
use pv::grant::{self, Table};
use pv::hypercall::{call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, Slot, ext};
use pv::{Answer, event, start, trap};

use crate::neighbour;

/// Pages that may become anything: data, tables, somebody else's, gone.
pub const PAGES: usize = 32;
/// Places at which to map.
pub const WINDOWS: usize = 12;
/// Copies of the first root. Only what lies beyond [`ENTRY`] is ever changed in them.
pub const ROOTS: usize = 3;
/// The entries that are played with begin here; in a root, what the kernel needs lies before it.
pub const ENTRY: u64 = 300;
/// And so many there are.
pub const ENTRIES: u64 = 8;
/// The first grant reference that is played with.
pub const GREF: u64 = 8;
/// And so many there are.
pub const GREFS: u64 = 16;
/// Handles whose whereabouts are remembered.
const HANDLES: usize = 256;

/// Frames that are remembered, so that they can be given back when no page's number leads to them any more.
const FRAMES: usize = 4096;

/// Numbers that both vcpus may change.
struct Row<const N: usize>([AtomicU64; N]);

impl<const N: usize> Row<N> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::SeqCst)
    }

    fn set(&self, index: usize, value: u64) {
        self.0[index].store(value, Ordering::SeqCst);
    }
}

/// The scene.
pub struct Scene {
    own: AtomicU64,
    pages: Row<PAGES>,
    windows: Row<WINDOWS>,
    /// Where the windows' entries lie in our first tables.
    slots: Row<WINDOWS>,
    roots: Row<ROOTS>,
    /// The neighbour's frames; 0 without it.
    neighbours: Row<{ neighbour::PAGES }>,
    /// Two pages side by side, for what is longer than a request.
    scratch: AtomicU64,
    /// Where the neighbour's grant table is mapped.
    offers: AtomicU64,
    offers_entry: AtomicU64,
    /// Where our own is.
    table: AtomicU64,
    /// Where each handle's grant was mapped: the address as it was given, 0 for none.
    handles: Row<HANDLES>,
    /// The frames that were taken meanwhile, and how many these are.
    taken: Row<FRAMES>,
    count: AtomicU64,
}

static SCENE: Scene = Scene {
    own: AtomicU64::new(SELF as u64),
    pages: Row::new(),
    windows: Row::new(),
    slots: Row::new(),
    roots: Row::new(),
    neighbours: Row::new(),
    scratch: AtomicU64::new(0),
    offers: AtomicU64::new(0),
    offers_entry: AtomicU64::new(0),
    table: AtomicU64::new(0),
    handles: Row::new(),
    taken: Row::new(),
    count: AtomicU64::new(0),
};

/// Returns the scene.
pub fn get() -> &'static Scene {
    &SCENE
}

impl Scene {
    /// Prepares everything.
    pub fn set() -> Result<(), Answer> {
        let scene = get();
        scene.own.store(start::domid().unwrap_or(SELF).into(), Ordering::SeqCst);
        (0..PAGES).for_each(|index| scene.pages.set(index, Page::new().address()));
        for index in 0..WINDOWS {
            let window = Page::new();
            scene.windows.set(index, window.address());
            scene
                .slots
                .set(index, Slot::of(window.address(), 1).map_or(0, Slot::maddr));
        }
        for index in 0..ROOTS {
            let root = tables::copy_of_root();
            root.seal()?;
            scene.roots.set(index, root.address());
        }
        scene.table.store(Table::setup()?.address(), Ordering::SeqCst);
        scene.scratch.store(Page::new().address(), Ordering::SeqCst);
        Page::new();
        if start::is_dom0() {
            neighbour::prepare(Page::new());
            scene.meet(&neighbour::make()?);
            let offers = Page::new();
            scene.offers_entry.store(neighbour::entry_of(offers), Ordering::SeqCst);
            neighbour::map_grants(neighbour::entry_of(offers))?;
            scene.offers.store(offers.address(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Notes the frames of a new neighbour.
    fn meet(&self, frames: &[u64; neighbour::PAGES]) {
        frames
            .iter()
            .enumerate()
            .for_each(|(index, mfn)| self.neighbours.set(index, *mfn));
    }

    /// Makes another neighbour, and maps its grant table where the last one's was.
    pub fn meet_another(&self) -> Result<(), Answer> {
        memory::unmap(self.offers.load(Ordering::SeqCst));
        tables::extended(ext::TLB_FLUSH_ALL, 0, 0);
        self.meet(&neighbour::make()?);
        neighbour::map_grants(self.offers_entry.load(Ordering::SeqCst))
    }

    /// Returns where there is room for two pages.
    pub fn scratch(&self) -> u64 {
        self.scratch.load(Ordering::SeqCst)
    }

    /// Returns our own id.
    pub fn own(&self) -> u16 {
        self.own.load(Ordering::SeqCst) as u16
    }

    /// Returns page `index`.
    pub fn page(&self, index: u64) -> Page {
        Page::at(self.pages.get(index as usize % PAGES))
    }

    /// Returns window `index`.
    pub fn window(&self, index: u64) -> Page {
        Page::at(self.windows.get(index as usize % WINDOWS))
    }

    /// Returns where the entry of window `index` lies.
    pub fn slot(&self, index: u64) -> u64 {
        self.slots.get(index as usize % WINDOWS)
    }

    /// Returns root `index`.
    pub fn root(&self, index: u64) -> Page {
        Page::at(self.roots.get(index as usize % ROOTS))
    }

    /// Returns a frame of the neighbour's; 0 without it.
    pub fn neighbours_frame(&self, index: u64) -> u64 {
        self.neighbours.get(index as usize % neighbour::PAGES)
    }

    /// Tells whether there is a neighbour.
    pub fn has_neighbour(&self) -> bool {
        self.offers.load(Ordering::SeqCst) != 0
    }

    /// Writes an offer into our table or the neighbour's.
    pub fn offer(&self, neighbours: bool, gref: u64, entry: u64) {
        let table = if neighbours { &self.offers } else { &self.table };
        let table = table.load(Ordering::SeqCst);
        if table != 0 {
            // The neighbour's may be on its way to another neighbour's.
            let _ = trap::attempt(|| Page::at(table).set_word(gref as usize % 512, entry));
        }
    }

    /// Notes where a handle's grant is mapped.
    pub fn mapped(&self, handle: u32, host_addr: u64) {
        if (handle as usize) < HANDLES {
            self.handles.set(handle as usize, host_addr);
        }
    }

    /// Notes that `mfn` is behind page `pfn` now. What was there before may be ours still.
    pub fn took(&self, pfn: u64, mfn: u64) {
        memory::set_p2m(pfn, mfn);
        let index = self.count.fetch_add(1, Ordering::SeqCst) as usize;
        if index < FRAMES {
            self.taken.set(index, mfn);
        }
    }

    /// Returns where a handle's grant was mapped last.
    pub fn whereabouts(&self, handle: u32) -> u64 {
        if (handle as usize) < HANDLES {
            self.handles.get(handle as usize)
        } else {
            0
        }
    }

    /// Takes the calling vcpu back to what it came with.
    pub fn leave() {
        tables::set_user_root(0);
        tables::set_root(tables::root_mfn());
        tables::extended(ext::SET_LDT, 0, 0);
        call(number::SET_GDT, [0, 0]);
        call(number::SET_DEBUGREG, [7, 0]);
    }

    /// Gives back what is held. Refusals are no news: most of it is not held.
    pub fn clear(&self) {
        event::op(evtchnop::RESET, &mut [SELF]);
        for handle in 0..HANDLES {
            grant::unmap(handle as u32, self.handles.get(handle));
        }
        (0..WINDOWS).for_each(|index| _ = memory::unmap(self.windows.get(index)));
        let pages = (0..PAGES).map(|index| self.pages.get(index));
        for page in pages.chain((0..ROOTS).map(|index| self.roots.get(index))).map(Page::at) {
            tables::unpin(page.mfn());
            memory::unmap(page.address());
        }
        let count = self.count.load(Ordering::SeqCst).min(FRAMES as u64) as usize;
        (0..count).for_each(|index| _ = tables::unpin(self.taken.get(index)));
        if self.has_neighbour() {
            memory::unmap(self.offers.load(Ordering::SeqCst));
            tables::extended(ext::TLB_FLUSH_ALL, 0, 0);
            neighbour::destroy_all();
        }
        // What was mapped as a table while it was none can be had again, and now is.
        (0..PAGES).for_each(|index| {
            let page = self.page(index as u64);
            memory::map(page.address(), page.mfn(), ORDINARY);
        });
    }
}
