//! Guest memory as hypercalls see it: typed addresses that are read once and written once, by copy.

use core::marker::PhantomData;
use core::mem::size_of;
use ferroxen_abi::errno::Errno;
use ferroxen_words::Vaddr;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where, in the caller's current address space, a `T` is said to lie.
///
/// Nothing has been checked: each access may fail with `EFAULT`, also one right after another succeeded.
pub struct GuestPtr<T> {
    at: u64,
    shape: PhantomData<fn() -> T>,
}

impl<T> Clone for GuestPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for GuestPtr<T> {}

impl<T> GuestPtr<T> {
    /// The address as the guest gave it.
    #[inline]
    pub const fn new(at: u64) -> Self {
        GuestPtr { at, shape: PhantomData }
    }

    /// Whether the guest gave a null pointer.
    #[inline]
    pub const fn is_null(self) -> bool {
        self.at == 0
    }

    /// The raw address.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.at
    }

    /// The same address, said to hold something else.
    #[inline]
    pub const fn cast<U>(self) -> GuestPtr<U> {
        GuestPtr::new(self.at)
    }

    /// The address of element `index` of an array that starts here.
    #[inline]
    pub fn element(self, index: u64) -> Result<Self, Errno> {
        let offset = index.checked_mul(size_of::<T>() as u64).ok_or(Errno::EFAULT)?;
        self.at.checked_add(offset).map(GuestPtr::new).ok_or(Errno::EFAULT)
    }
}

impl<T: FromBytes + IntoBytes + Immutable> GuestPtr<T> {
    /// Copies the value out.
    #[inline(always)]
    pub fn read(self) -> Result<T, Errno> {
        ferroxen_machine::guest::read(Vaddr::new(self.at)).map_err(|_| Errno::EFAULT)
    }

    /// Copies element `index` out.
    #[inline]
    pub fn read_element(self, index: u64) -> Result<T, Errno> {
        self.element(index)?.read()
    }

    /// Copies the value in.
    #[inline(always)]
    pub fn write(self, value: &T) -> Result<(), Errno> {
        ferroxen_machine::guest::write(Vaddr::new(self.at), value).map_err(|_| Errno::EFAULT)
    }

    /// Copies element `index` in.
    #[inline]
    pub fn write_element(self, index: u64, value: &T) -> Result<(), Errno> {
        self.element(index)?.write(value)
    }

    /// Copies a whole slice out.
    pub fn read_slice(self, into: &mut [T]) -> Result<(), Errno> {
        ferroxen_machine::guest::copy_from_guest(Vaddr::new(self.at), into.as_mut_bytes()).map_err(|_| Errno::EFAULT)
    }

    /// Copies a whole slice in.
    pub fn write_slice(self, from: &[T]) -> Result<(), Errno> {
        ferroxen_machine::guest::copy_to_guest(Vaddr::new(self.at), from.as_bytes()).map_err(|_| Errno::EFAULT)
    }
}
