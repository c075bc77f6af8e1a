//! The two-level protocol: pending bits, mask bits, one selector word and one "look" byte per vcpu.

use ferroxen_words::{Port, VcpuId};

/// The words that a domain shares with us. Each method is one atomic access.
///
/// The guest changes the same words at the same time, so an answer may be stale at once; the protocol
/// is written such that this costs at most a needless upcall.
pub trait SharedBits {
    /// Sets the port's pending bit; tells whether it was set already.
    fn test_and_set_pending(&self, port: Port) -> bool;
    /// Whether the port's pending bit is set.
    fn is_pending(&self, port: Port) -> bool;
    /// Clears the port's pending bit.
    fn clear_pending(&self, port: Port);
    /// Whether the port's mask bit is set.
    fn is_masked(&self, port: Port) -> bool;
    /// Clears the port's mask bit; tells whether it was set.
    fn test_and_clear_mask(&self, port: Port) -> bool;
    /// Sets bit `word` of the vcpu's selector and, if it was clear, the vcpu's `evtchn_upcall_pending`: two
    /// accesses, in this order. Tells whether both were clear: the vcpu was not going to look there anyway.
    fn select(&self, vcpu: VcpuId, word: u32) -> bool;
}

/// What a ring came to.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rung {
    /// The port was pending already: the guest has yet to look, nobody needs to do anything.
    Already,
    /// Newly pending, but nobody to interrupt: the port is masked or the vcpu is due to look anyway.
    /// A vcpu that polls this port must wake.
    Quiet,
    /// Newly pending, and this vcpu must be woken or interrupted so that it takes the upcall.
    /// A vcpu that polls this port must wake, too.
    Upcall(VcpuId),
}

/// Bits in one word of the pending and mask arrays of a 64-bit domain.
const WORD_BITS: u32 = 64;

/// Rings `port`, whose upcalls go to `vcpu`.
///
/// Ringing twice before the guest looks is one ring, so the second answers [`Rung::Already`].
#[inline]
pub fn ring(bits: &impl SharedBits, port: Port, vcpu: VcpuId) -> Rung {
    if bits.test_and_set_pending(port) {
        return Rung::Already;
    }
    if bits.is_masked(port) || !bits.select(vcpu, port.raw() / WORD_BITS) {
        Rung::Quiet
    } else {
        Rung::Upcall(vcpu)
    }
}

/// Unmasks `port`, and raises the upcall that the mask held back.
#[inline]
pub fn unmask(bits: &impl SharedBits, port: Port, vcpu: VcpuId) -> Rung {
    if bits.test_and_clear_mask(port) && bits.is_pending(port) && bits.select(vcpu, port.raw() / WORD_BITS) {
        Rung::Upcall(vcpu)
    } else {
        Rung::Already
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    extern crate std;

    #[derive(Default)]
    struct Page {
        pending: RefCell<BTreeSet<u32>>,
        masked: RefCell<BTreeSet<u32>>,
        selector: Cell<u64>,
        upcall: Cell<bool>,
    }

    impl SharedBits for Page {
        fn test_and_set_pending(&self, port: Port) -> bool {
            !self.pending.borrow_mut().insert(port.raw())
        }
        fn is_pending(&self, port: Port) -> bool {
            self.pending.borrow().contains(&port.raw())
        }
        fn clear_pending(&self, port: Port) {
            self.pending.borrow_mut().remove(&port.raw());
        }
        fn is_masked(&self, port: Port) -> bool {
            self.masked.borrow().contains(&port.raw())
        }
        fn test_and_clear_mask(&self, port: Port) -> bool {
            self.masked.borrow_mut().remove(&port.raw())
        }
        fn select(&self, _: VcpuId, word: u32) -> bool {
            let old = self.selector.get();
            self.selector.set(old | 1 << word);
            old & 1 << word == 0 && !self.upcall.replace(true)
        }
    }

    const V0: VcpuId = VcpuId(0);

    #[test]
    fn ringing_twice_before_the_guest_looks_wakes_it_once() {
        let page = Page::default();
        assert_eq!(ring(&page, Port::new(70), V0), Rung::Upcall(V0));
        assert_eq!(ring(&page, Port::new(70), V0), Rung::Already);
        assert_eq!(page.selector.get(), 1 << 1);
    }

    #[test]
    fn a_second_port_of_the_same_word_is_quiet() {
        let page = Page::default();
        assert_eq!(ring(&page, Port::new(3), V0), Rung::Upcall(V0));
        assert_eq!(ring(&page, Port::new(4), V0), Rung::Quiet);
    }

    #[test]
    fn a_masked_port_is_pending_but_quiet_until_it_is_unmasked() {
        let page = Page::default();
        page.masked.borrow_mut().insert(9);
        assert_eq!(ring(&page, Port::new(9), V0), Rung::Quiet);
        assert!(!page.upcall.get());
        assert_eq!(unmask(&page, Port::new(9), V0), Rung::Upcall(V0));
        assert_eq!(unmask(&page, Port::new(9), V0), Rung::Already);
    }

    #[test]
    fn unmasking_a_silent_port_raises_nothing() {
        let page = Page::default();
        page.masked.borrow_mut().insert(9);
        assert_eq!(unmask(&page, Port::new(9), V0), Rung::Already);
        assert!(!page.upcall.get());
    }
}
