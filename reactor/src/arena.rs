//! The buffer arena: one mapping per reactor, cut into slots, registered with the ring once.
//!
//! A slot is reached through *windows*. A [`BufMut`] is the only way to its bytes; windows of one
//! slot come from splitting and never overlap. Freezing turns a `BufMut` into a [`Buf`], whose
//! clones share read-only bytes: one stable copy of a payload feeds sends to many replicas. An op
//! owns its windows until its completion, so nobody can look at bytes that the kernel is writing
//! or change bytes that it is reading. A slot is free again when its last window is dropped.
//!
//! Windows hold an `Rc` of the arena: they stay on the reactor's thread.

use crate::error::{Errno, SetupError};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;

/// Slot sizes, ascending, in bytes. Each is a multiple of 4 KiB, so every slot is page-aligned.
pub const SLOT_BYTES: [u32; 3] = [4 * 1024, 16 * 1024, 128 * 1024];

/// How many slots of each size an arena has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Counts, in the order of [`SLOT_BYTES`].
    pub slot_counts: [u32; 3],
    /// Try huge pages first; normal pages otherwise (which is reported).
    pub huge_pages: bool,
}

impl Default for ArenaConfig {
    /// 64 MiB: 4 096 small, 1 024 medium, 256 large slots.
    fn default() -> Self {
        Self {
            slot_counts: [4096, 1024, 256],
            huge_pages: true,
        }
    }
}

impl ArenaConfig {
    /// Size of the mapping, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.slot_counts
            .iter()
            .zip(SLOT_BYTES)
            .map(|(n, b)| u64::from(*n) * u64::from(b))
            .sum()
    }
}

const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// The mapping itself; unmapped when the last window and the last `Arena` are gone.
struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
    huge: bool,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len_bytes` are those of one successful mmap in `Mapping::new`, and
        // every window holds the `Rc` that owns this mapping, so no window outlives it.
        let unmapped = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
        assert_eq!(unmapped, 0, "arena: munmap of our own mapping failed");
    }
}

impl Mapping {
    fn new(config: &ArenaConfig) -> Result<Self, SetupError> {
        let wanted = config.len_bytes().max(u64::from(SLOT_BYTES[0]));
        if config.huge_pages {
            let rounded = wanted.next_multiple_of(HUGE_PAGE_BYTES);
            let huge = libc::MAP_HUGETLB | libc::MAP_POPULATE;
            if let Ok(mapping) = Self::map(rounded, huge) {
                return Ok(mapping);
            }
        }
        // Resident, so registration cannot fault later.
        Self::map(wanted, libc::MAP_POPULATE)
    }

    /// For a ring that registers nothing: pages come as they are touched.
    fn simulated(config: &ArenaConfig) -> Result<Self, SetupError> {
        Self::map(config.len_bytes().max(u64::from(SLOT_BYTES[0])), 0)
    }

    fn map(len: u64, extra: i32) -> Result<Self, SetupError> {
        let len_bytes = usize::try_from(len).expect("64-bit host");
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice; no memory of
        // ours is concerned.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            let code = std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::ENOMEM);
            return Err(SetupError::Call {
                what: format!("map {len_bytes} bytes for the buffer arena"),
                errno: Errno(code),
            });
        }
        let base = NonNull::new(at.cast()).expect("mmap without MAP_FIXED never returns null");
        Ok(Self {
            base,
            len_bytes,
            huge: extra & libc::MAP_HUGETLB != 0,
        })
    }
}

/// First slot and byte offset of a size class.
#[derive(Clone, Copy)]
struct Class {
    first_slot: u32,
    first_byte: usize,
    slot_bytes: u32,
}

struct Inner {
    mapping: Mapping,
    classes: [Class; SLOT_BYTES.len()],
    free: [RefCell<Vec<u32>>; SLOT_BYTES.len()],
    /// Windows per slot; zero means the slot is on its free list.
    windows: Box<[Cell<u32>]>,
    in_use_bytes: Cell<u64>,
}

impl Inner {
    fn class_of(&self, slot: u32) -> usize {
        self.classes
            .iter()
            .rposition(|c| c.first_slot <= slot)
            .expect("class 0 starts at slot 0")
    }

    fn offset_of(&self, slot: u32) -> usize {
        let class = self.classes[self.class_of(slot)];
        class.first_byte + (slot - class.first_slot) as usize * class.slot_bytes as usize
    }

    fn add_window(&self, slot: u32) {
        let count = &self.windows[slot as usize];
        assert!(count.get() > 0, "arena: window added to a free slot {slot}");
        count.set(count.get() + 1);
    }

    fn drop_window(&self, slot: u32) {
        let count = &self.windows[slot as usize];
        assert!(
            count.get() > 0,
            "arena: window dropped on a free slot {slot}"
        );
        count.set(count.get() - 1);
        if count.get() == 0 {
            let class = self.class_of(slot);
            self.free[class].borrow_mut().push(slot);
            self.in_use_bytes
                .set(self.in_use_bytes.get() - u64::from(SLOT_BYTES[class]));
        }
    }
}

/// The arena. Cloning shares it.
#[derive(Clone)]
pub struct Arena(Rc<Inner>);

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("len_bytes", &self.0.mapping.len_bytes)
            .field("huge", &self.0.mapping.huge)
            .field("in_use_bytes", &self.0.in_use_bytes.get())
            .finish()
    }
}

impl Arena {
    /// Maps and cuts an arena.
    ///
    /// # Errors
    /// [`SetupError::Call`] if the memory is not to be had.
    pub fn new(config: &ArenaConfig) -> Result<Self, SetupError> {
        Ok(Self::cut(config, Mapping::new(config)?))
    }

    /// The same for a simulated process, which lives for seconds and touches little of it.
    ///
    /// # Errors
    /// [`SetupError::Call`] if the address space is not to be had.
    pub(crate) fn simulated(config: &ArenaConfig) -> Result<Self, SetupError> {
        Ok(Self::cut(config, Mapping::simulated(config)?))
    }

    fn cut(config: &ArenaConfig, mapping: Mapping) -> Self {
        let mut classes = [Class {
            first_slot: 0,
            first_byte: 0,
            slot_bytes: 0,
        }; SLOT_BYTES.len()];
        let (mut slot, mut byte) = (0u32, 0usize);
        for ((class, count), slot_bytes) in
            classes.iter_mut().zip(config.slot_counts).zip(SLOT_BYTES)
        {
            *class = Class {
                first_slot: slot,
                first_byte: byte,
                slot_bytes,
            };
            slot += count;
            byte += count as usize * slot_bytes as usize;
        }
        assert!(byte <= mapping.len_bytes);
        let free = std::array::from_fn(|i| {
            let first = classes[i].first_slot;
            RefCell::new((first..first + config.slot_counts[i]).rev().collect())
        });
        let windows = (0..slot).map(|_| Cell::new(0)).collect();
        Self(Rc::new(Inner {
            mapping,
            classes,
            free,
            windows,
            in_use_bytes: Cell::new(0),
        }))
    }

    /// A window of `len_bytes` in a slot of the smallest size that fits and is free. `None` means
    /// backpressure: try again when a window was dropped.
    ///
    /// Panics if `len_bytes` is zero or larger than the largest slot.
    pub fn take(&self, len_bytes: u32) -> Option<BufMut> {
        assert!(len_bytes > 0 && len_bytes <= SLOT_BYTES[SLOT_BYTES.len() - 1]);
        for (class, slot_bytes) in SLOT_BYTES.iter().enumerate() {
            if *slot_bytes < len_bytes {
                continue;
            }
            if let Some(slot) = self.0.free[class].borrow_mut().pop() {
                assert_eq!(self.0.windows[slot as usize].replace(1), 0);
                self.0
                    .in_use_bytes
                    .set(self.0.in_use_bytes.get() + u64::from(*slot_bytes));
                return Some(BufMut(Window {
                    arena: self.0.clone(),
                    slot,
                    start: 0,
                    len_bytes,
                }));
            }
        }
        None
    }

    /// Bytes in slots that are in use.
    pub fn in_use_bytes(&self) -> u64 {
        self.0.in_use_bytes.get()
    }

    /// Whether the mapping consists of huge pages.
    pub fn is_huge(&self) -> bool {
        self.0.mapping.huge
    }

    /// The whole mapping, for registration with a ring.
    pub fn as_iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.0.mapping.base.as_ptr().cast(),
            iov_len: self.0.mapping.len_bytes,
        }
    }
}

/// A part of a slot. Private: whether its bytes are exclusive or shared is what the two public
/// types say.
struct Window {
    arena: Rc<Inner>,
    slot: u32,
    start: u32,
    len_bytes: u32,
}

impl Drop for Window {
    fn drop(&mut self) {
        self.arena.drop_window(self.slot);
    }
}

impl Window {
    fn sibling(&self, start: u32, len_bytes: u32) -> Self {
        self.arena.add_window(self.slot);
        Self {
            arena: self.arena.clone(),
            slot: self.slot,
            start,
            len_bytes,
        }
    }

    fn as_ptr(&self) -> *mut u8 {
        let offset = self.arena.offset_of(self.slot) + self.start as usize;
        debug_assert!(offset + self.len_bytes as usize <= self.arena.mapping.len_bytes);
        // SAFETY: slots lie inside the mapping and windows inside their slot, by construction in
        // `take` and `split_to`, so the sum stays within one allocation.
        unsafe { self.arena.mapping.base.as_ptr().add(offset) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped and initialised (anonymous memory is zeroed) for as long as
        // `arena` lives. No one writes to it while the borrow lasts: a `BufMut` is the only window
        // over its range and is borrowed here; ranges of `Buf`s are written by nobody; ops own
        // their windows, so the kernel does not write to a window that can be borrowed.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len_bytes as usize) }
    }
}

/// Exclusive window: read, write, hand to a receive or a read.
pub struct BufMut(Window);

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BufMut(slot {} +{} len {})",
            self.0.slot, self.0.start, self.0.len_bytes
        )
    }
}

impl BufMut {
    /// Length in bytes. A window may be empty after splitting.
    pub fn len_bytes(&self) -> u32 {
        self.0.len_bytes
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len_bytes == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `Window::bytes`; additionally `&mut self` borrows the only window over the
        // range, so the slice is unique.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), self.0.len_bytes as usize) }
    }

    /// Keeps `[at, len)` and returns `[0, at)`. Panics if `at` is past the end.
    pub fn split_to(&mut self, at: u32) -> BufMut {
        assert!(at <= self.0.len_bytes);
        let head = self.0.sibling(self.0.start, at);
        self.0.start += at;
        self.0.len_bytes -= at;
        BufMut(head)
    }

    /// Grows by the window that directly follows in the same slot. Panics if `next` does not.
    pub fn join(&mut self, next: BufMut) {
        assert!(Rc::ptr_eq(&self.0.arena, &next.0.arena) && self.0.slot == next.0.slot);
        assert_eq!(
            self.0.start + self.0.len_bytes,
            next.0.start,
            "arena: windows do not touch"
        );
        self.0.len_bytes += next.0.len_bytes;
    }

    /// Ends exclusive access: from here on the bytes never change.
    pub fn freeze(self) -> Buf {
        Buf(self.0)
    }

    /// Start of the window, for the kernel. Only drivers need it.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_ptr()
    }
}

/// Shared window: read, clone, hand to sends and writes.
pub struct Buf(Window);

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buf(slot {} +{} len {})",
            self.0.slot, self.0.start, self.0.len_bytes
        )
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        Self(self.0.sibling(self.0.start, self.0.len_bytes))
    }
}

impl Buf {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u32 {
        self.0.len_bytes
    }

    /// True if it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len_bytes == 0
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// A window over `[start, start + len_bytes)` of this one. Panics if it passes the end.
    pub fn slice(&self, start: u32, len_bytes: u32) -> Buf {
        let end = start.checked_add(len_bytes).expect("slice length");
        assert!(end <= self.0.len_bytes);
        Self(self.0.sibling(self.0.start + start, len_bytes))
    }

    /// Exclusive access again, if no other window of the slot is alive.
    ///
    /// # Errors
    /// Gives the window back if its slot is shared.
    pub fn try_unfreeze(self) -> Result<BufMut, Buf> {
        if self.0.arena.windows[self.0.slot as usize].get() == 1 {
            Ok(BufMut(self.0))
        } else {
            Err(self)
        }
    }

    /// Exclusive access to the whole slot, if no other window of it is alive: a slot that is cut
    /// up again and again need not go back to the arena in between.
    ///
    /// # Errors
    /// Gives the window back if its slot is shared.
    pub fn try_reclaim(self) -> Result<BufMut, Buf> {
        let BufMut(mut window) = self.try_unfreeze()?;
        window.start = 0;
        window.len_bytes = SLOT_BYTES[window.arena.class_of(window.slot)];
        Ok(BufMut(window))
    }

    /// Start of the window, for the kernel. Only drivers need it.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn arena(small: u32) -> Arena {
        Arena::new(&ArenaConfig {
            slot_counts: [small, 1, 1],
            huge_pages: false,
        })
        .unwrap()
    }

    #[test]
    fn a_slot_is_free_only_when_its_last_window_is_gone() {
        let arena = arena(1);
        let mut whole = arena.take(4096).unwrap();
        let head = whole.split_to(72).freeze();
        let copy = head.clone();
        drop(whole);
        drop(head);
        assert_eq!(arena.in_use_bytes(), 4096);
        drop(copy);
        assert_eq!(arena.in_use_bytes(), 0);
    }

    #[test]
    fn an_exhausted_class_borrows_from_the_next_and_then_says_no() {
        let arena = arena(1);
        let taken: Vec<_> = (0..3).map(|_| arena.take(100).unwrap()).collect();
        assert!(arena.take(100).is_none());
        drop(taken);
        assert!(arena.take(128 * 1024).is_some());
    }

    #[test]
    fn windows_split_and_join_over_the_same_bytes() {
        let arena = arena(1);
        let mut tail = arena.take(10).unwrap();
        tail.bytes_mut().copy_from_slice(b"0123456789");
        let mut head = tail.split_to(4);
        assert_eq!((head.bytes(), tail.bytes()), (&b"0123"[..], &b"456789"[..]));
        head.join(tail);
        assert_eq!(head.freeze().slice(3, 3).bytes(), b"345");
    }

    #[test]
    fn sharing_forbids_writing() {
        let arena = arena(1);
        let shared = arena.take(8).unwrap().freeze();
        let other = shared.clone();
        let shared = shared.try_unfreeze().unwrap_err();
        drop(other);
        assert!(shared.try_unfreeze().is_ok());
    }

    #[test]
    fn a_slot_is_reclaimed_whole_by_its_last_window() {
        let arena = arena(1);
        let mut rest = arena.take(100).unwrap();
        let first = rest.split_to(10).freeze();
        let second = rest.split_to(10).freeze();
        drop(rest);
        let first = first.try_reclaim().unwrap_err();
        drop(second);
        assert_eq!(first.try_reclaim().unwrap().len_bytes(), SLOT_BYTES[0]);
    }

    #[test]
    fn windows_outlive_the_arena_handle() {
        let held = arena(1).take(16).unwrap();
        assert_eq!(held.bytes(), [0; 16]);
    }
}
