//! The clock: nanoseconds since boot, read from the time stamp counter by the formula that guests use.
//!
//! Boot calls [`init`], which measures the counter for two milliseconds against the best reference clock there is,
//! and [`refine`] once it has done its own work: the time that work took makes the measurement good, and nobody
//! waits for it. What [`refine`] settles stays: from then on every CPU and every guest computes the same "now".

use core::sync::atomic::{AtomicU64, Ordering};

use ferroxen_words::Maddr;
use spin::Once;

use super::{apic, cpu, hpet, percpu, pit, pmtimer};
pub use crate::timescale::{SECOND, TimeScale};
use crate::timescale::{frequency, unwrapped};

/// Serving one guest may take this long before it must give way (half a millisecond).
const ENTRY_BUDGET_NS: u64 = 500_000;
/// The first look at the counter lasts this long.
const ROUGH_NS: u64 = 2_000_000;
/// The measurement that counts lasts at least this long.
const REFINED_NS: u64 = 10_000_000;
/// Reads of which the least disturbed counts: the first ones warm caches (and an emulator's translations) up.
const SAMPLES: usize = 8;
/// No counter is slower or faster than this.
const PLAUSIBLE_HZ: core::ops::RangeInclusive<u64> = 1_000_000..=20_000_000_000;
/// Reads of a reference clock that stands still before it is given up.
const STALLED_READS: u32 = 5_000_000;

/// A clock of known frequency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reference {
    /// High Precision Event Timer.
    Hpet,
    /// ACPI's power management timer.
    PmTimer,
    /// Channel 2 of the 8254.
    Pit,
}

/// Where the reference clocks are, as ACPI tells.
#[derive(Clone, Copy, Default, Debug)]
pub struct Clocks {
    /// HPET table.
    pub hpet: Option<Maddr>,
    /// FADT's `PM_TMR_BLK`.
    pub pm_timer: Option<u16>,
}

/// The state that [`init`] leaves for [`refine`].
struct Measured {
    reference: Reference,
    reference_hz: u64,
    start: Sample,
    /// The local APIC's timer, counting down.
    apic_start: Option<Sample>,
}

/// Two clocks read at the same moment, or nearly.
#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    reference: u32,
}

static MEASURED: Once<Measured> = Once::new();

/// Where the clock stands, under a sequence count: odd while it changes.
struct Clock {
    sequence: AtomicU64,
    tsc: AtomicU64,
    ns: AtomicU64,
    hz: AtomicU64,
    /// `mul_frac` in the low half, `shift` above it.
    scale: AtomicU64,
    back: AtomicU64,
    entry_budget: AtomicU64,
}

static CLOCK: Clock = Clock {
    sequence: AtomicU64::new(0),
    tsc: AtomicU64::new(0),
    ns: AtomicU64::new(0),
    hz: AtomicU64::new(0),
    scale: AtomicU64::new(0),
    back: AtomicU64::new(0),
    entry_budget: AtomicU64::new(u64::MAX),
};

/// What `vcpu_time_info` carries: at `tsc` the time was `ns`; from there on `scale` applies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Time stamp counter.
    pub tsc: u64,
    /// Nanoseconds since boot.
    pub ns: u64,
    /// From ticks to nanoseconds.
    pub scale: TimeScale,
}

/// What the time is measured against.
pub fn reference() -> Option<Reference> {
    MEASURED.get().map(|measured| measured.reference)
}

/// Finds a reference clock and starts the time. `None` if no clock moves: the machine cannot tell time.
///
/// The local APIC's timer, if it is set up, is measured as well.
pub fn init(clocks: Clocks) -> Option<Reference> {
    let candidates = [Reference::Hpet, Reference::PmTimer, Reference::Pit];
    candidates.into_iter().find_map(|reference| {
        let reference_hz = reference.start(clocks)?;
        let start = sample(reference);
        let end = wait(reference, reference_hz, start, ROUGH_NS)?;
        let elapsed = u64::from(end.reference.wrapping_sub(start.reference) & reference.mask());
        let hz = frequency(end.tsc.wrapping_sub(start.tsc), elapsed, reference_hz)?;
        if !PLAUSIBLE_HZ.contains(&hz) {
            return None;
        }
        set_clock(start.tsc, 0, hz)?;
        let apic_start = apic::is_set_up().then(|| {
            apic::timer_measure_begin();
            apic_sample()
        });
        MEASURED.call_once(|| Measured {
            reference,
            reference_hz,
            start,
            apic_start,
        });
        Some(reference)
    })
}

/// Measures again over all the time since [`init`], at least ten milliseconds, and settles the frequency.
///
/// Called once, by the boot CPU, before other CPUs or guests read the clock and before any timer is armed.
/// Answers the frequency of the time stamp counter.
pub fn refine() -> u64 {
    let Some(Measured {
        reference,
        reference_hz,
        start,
        apic_start,
    }) = MEASURED.get()
    else {
        return 0;
    };
    let passed = now_ns();
    let more = REFINED_NS.saturating_sub(passed);
    let now = sample(*reference);
    let Some(end) = wait(*reference, *reference_hz, now, more) else {
        return tsc_hz();
    };
    let counted = end.tsc.wrapping_sub(start.tsc);
    let rough = u128::from(tsc_to_ns(counted)) * u128::from(*reference_hz) / u128::from(SECOND);
    let rough = u64::try_from(rough).unwrap_or(u64::MAX);
    let elapsed = unwrapped(start.reference, end.reference, reference.mask(), rough);
    let refined = frequency(counted, elapsed, *reference_hz)
        // The rough figure is good to a hundredth at the very least; more than that is a wrong guess at wraps.
        .filter(|hz| hz.abs_diff(tsc_hz()) <= tsc_hz() / 64);
    if let Some(hz) = refined {
        let before = now_ns();
        let since_start = TimeScale::to_nanoseconds(hz).map_or(before, |scale| scale.apply(counted));
        set_clock(end.tsc, since_start.max(before), hz);
    }
    if let Some(start) = apic_start {
        measure_apic(*start);
    }
    tsc_hz()
}

/// Measures the local APIC's timer by the time stamp counter, whose frequency is known by now.
fn measure_apic(start: Sample) {
    let mut start = start;
    let mut end = apic_sample();
    if end.reference == 0 {
        // It ran out in the long time since.
        apic::timer_measure_begin();
        start = apic_sample();
        delay_us(ROUGH_NS / 1000);
        end = apic_sample();
    }
    let counted = u64::from(start.reference.wrapping_sub(end.reference));
    let hz = frequency(counted, end.tsc.wrapping_sub(start.tsc), tsc_hz()).unwrap_or(0);
    apic::timer_measure_end(hz);
}

impl Reference {
    fn start(self, clocks: Clocks) -> Option<u64> {
        match self {
            Reference::Hpet => clocks.hpet.and_then(hpet::start),
            Reference::PmTimer => clocks
                .pm_timer
                .and_then(|port| pmtimer::start(port).then_some(pmtimer::HZ)),
            Reference::Pit => pit::start().then_some(pit::HZ),
        }
    }

    fn read(self) -> u32 {
        match self {
            Reference::Hpet => hpet::read(),
            Reference::PmTimer => pmtimer::read(),
            Reference::Pit => pit::read(),
        }
    }

    const fn mask(self) -> u32 {
        match self {
            Reference::Hpet => hpet::MASK,
            Reference::PmTimer => pmtimer::MASK,
            Reference::Pit => pit::MASK,
        }
    }
}

/// Reads both clocks several times, and keeps the pair whose reading took least.
fn sample(reference: Reference) -> Sample {
    best_of(|| pair(|| reference.read()))
}

/// As [`sample`], with the local APIC's timer, which counts down.
fn apic_sample() -> Sample {
    best_of(|| pair(apic::timer_left))
}

fn best_of(take: impl Fn() -> (u64, Sample)) -> Sample {
    let best = core::iter::repeat_with(take)
        .take(SAMPLES)
        .min_by_key(|(took, _)| *took);
    best.map_or(Sample { tsc: 0, reference: 0 }, |(_, sample)| sample)
}

/// Reads both clocks once, and how many ticks that took.
///
/// Never inlined: unrolled, every copy would run cold, and a cold one takes longest.
#[inline(never)]
fn pair(read: impl Fn() -> u32) -> (u64, Sample) {
    let before = cpu::tsc();
    let reference = read();
    let took = cpu::tsc().wrapping_sub(before);
    (
        took,
        Sample {
            tsc: before.wrapping_add(took / 2),
            reference,
        },
    )
}

/// Waits until `ns` have passed since `from` by the reference clock, and reads both. `None` if it stands still.
///
/// `ns` must be well below the time in which the reference wraps (55 ms for the 8254).
fn wait(reference: Reference, reference_hz: u64, from: Sample, ns: u64) -> Option<Sample> {
    let wanted = u128::from(ns) * u128::from(reference_hz) / u128::from(SECOND);
    let mut still = 0;
    let mut last = from.reference;
    loop {
        let shown = reference.read();
        if u128::from(shown.wrapping_sub(from.reference) & reference.mask()) >= wanted {
            return Some(sample(reference));
        }
        still = if shown == last { still + 1 } else { 0 };
        if still > STALLED_READS {
            return None;
        }
        last = shown;
        cpu::relax();
    }
}

fn set_clock(tsc: u64, ns: u64, hz: u64) -> Option<()> {
    let (scale, back) = (TimeScale::to_nanoseconds(hz)?, TimeScale::from_nanoseconds(hz)?);
    CLOCK.sequence.fetch_add(1, Ordering::AcqRel);
    CLOCK.tsc.store(tsc, Ordering::Relaxed);
    CLOCK.ns.store(ns, Ordering::Relaxed);
    CLOCK.hz.store(hz, Ordering::Relaxed);
    CLOCK.scale.store(pack(scale), Ordering::Relaxed);
    CLOCK.back.store(pack(back), Ordering::Relaxed);
    CLOCK.entry_budget.store(back.apply(ENTRY_BUDGET_NS), Ordering::Relaxed);
    CLOCK.sequence.fetch_add(1, Ordering::Release);
    Some(())
}

const fn pack(scale: TimeScale) -> u64 {
    scale.mul_frac as u64 | (scale.shift.to_le_bytes()[0] as u64) << 32
}

const fn unpack(packed: u64) -> TimeScale {
    TimeScale {
        mul_frac: packed as u32,
        shift: i8::from_le_bytes([(packed >> 32) as u8]),
    }
}

/// Where the clock stands, for `vcpu_time_info`. The same for every CPU, and after [`refine`] for ever.
#[inline]
pub fn moment() -> Moment {
    loop {
        let sequence = CLOCK.sequence.load(Ordering::Acquire);
        let moment = Moment {
            tsc: CLOCK.tsc.load(Ordering::Relaxed),
            ns: CLOCK.ns.load(Ordering::Relaxed),
            scale: unpack(CLOCK.scale.load(Ordering::Relaxed)),
        };
        core::sync::atomic::fence(Ordering::Acquire);
        if sequence & 1 == 0 && CLOCK.sequence.load(Ordering::Relaxed) == sequence {
            return moment;
        }
        cpu::relax();
    }
}

impl Moment {
    /// The time at which the counter shows `tsc`; the moment's own for any earlier.
    #[inline]
    pub const fn ns_at(self, tsc: u64) -> u64 {
        self.ns.saturating_add(self.scale.apply(tsc.saturating_sub(self.tsc)))
    }
}

/// Nanoseconds since boot; 0 before [`init`].
#[inline]
pub fn now_ns() -> u64 {
    moment().ns_at(cpu::tsc())
}

/// The counter's value at which the clock will show `deadline_ns`, or just after: what a timer is armed with.
///
/// A deadline that has passed gives the present.
#[inline]
pub fn tsc_at(deadline_ns: u64) -> u64 {
    let moment = moment();
    let tsc = cpu::tsc();
    match deadline_ns.checked_sub(moment.ns_at(tsc)) {
        None | Some(0) => tsc,
        Some(ahead) => tsc.saturating_add(ns_to_tsc(ahead)).saturating_add(1),
    }
}

/// How many ticks so many nanoseconds take, rounded down.
#[inline]
pub fn ns_to_tsc(ns: u64) -> u64 {
    unpack(CLOCK.back.load(Ordering::Relaxed)).apply(ns)
}

/// How many nanoseconds so many ticks take, rounded down.
#[inline]
pub fn tsc_to_ns(ticks: u64) -> u64 {
    unpack(CLOCK.scale.load(Ordering::Relaxed)).apply(ticks)
}

/// Ticks of the time stamp counter in a second; 0 before [`init`].
#[inline]
pub fn tsc_hz() -> u64 {
    CLOCK.hz.load(Ordering::Relaxed)
}

/// The time stamp counter when this was first asked since this CPU last began to serve a guest.
///
/// Long operations ask at their start; what comes before is short.
#[inline]
pub fn entry_started() -> u64 {
    // SAFETY: the running CPU's own info, which nobody else touches.
    unsafe {
        let info = percpu::info();
        if (*info).entered_at == 0 {
            (*info).entered_at = cpu::tsc().max(1);
        }
        (*info).entered_at
    }
}

/// Tells whether this CPU has served its guest for long enough that a long operation should give way.
#[inline]
pub fn entry_budget_spent() -> bool {
    let started = entry_started();
    cpu::tsc().wrapping_sub(started) > CLOCK.entry_budget.load(Ordering::Relaxed)
}

/// Waits at least `microseconds`, for hardware that needs a pause; serves no requests meanwhile.
pub fn delay_us(microseconds: u64) {
    let until = now_ns().saturating_add(microseconds.saturating_mul(1000));
    while now_ns() < until {
        cpu::relax();
    }
}
