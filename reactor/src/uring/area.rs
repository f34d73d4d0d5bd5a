//! Memory beside the buffers that the kernel reads while an op is in flight: message headers,
//! vectors, addresses.

use crate::driver::SEND_PARTS_MAX;
use rustix::net::SocketAddrAny;
use rustix::net::addr::SocketAddrArg;
use std::net::SocketAddr;
use std::ptr::NonNull;

/// A pair of address and length, as vectors want it.
pub(super) type Part = (*const u8, u32);

struct Area {
    message: libc::msghdr,
    vectors: [libc::iovec; SEND_PARTS_MAX],
    address: Option<SocketAddrAny>,
}

/// One area on loan to one op. It is reached by raw pointer only, because the kernel reads it too.
#[derive(Debug)]
pub(super) struct AreaLoan(NonNull<Area>);

impl AreaLoan {
    /// Fills the vectors with `parts` after their first `skip_bytes`, and the header with the
    /// vectors. Panics if there are more than [`SEND_PARTS_MAX`] parts.
    pub(super) fn fill(
        &mut self,
        parts: impl Iterator<Item = Part>,
        mut skip_bytes: u32,
    ) -> *mut libc::msghdr {
        let area = self.0.as_ptr();
        let mut count = 0;
        for (base, len_bytes) in parts {
            let skipped = skip_bytes.min(len_bytes);
            skip_bytes -= skipped;
            if skipped == len_bytes {
                continue;
            }
            assert!(
                count < SEND_PARTS_MAX,
                "reactor: more than {SEND_PARTS_MAX} parts in one op"
            );
            let vector = libc::iovec {
                iov_base: base.wrapping_add(skipped as usize).cast_mut().cast(),
                iov_len: (len_bytes - skipped) as usize,
            };
            // SAFETY: `area` points to a live allocation (see `AreaPool`), lent to us alone; the
            // kernel has no op on it while its owner fills it. `count` is within the array.
            unsafe { (*area).vectors[count] = vector };
            count += 1;
        }
        // SAFETY: as above; a place projection of a live allocation.
        let vectors = unsafe { &raw mut (*area).vectors }.cast::<libc::iovec>();
        // SAFETY: as above.
        let message = unsafe { &mut (*area).message };
        message.msg_iov = vectors;
        message.msg_iovlen = count;
        message
    }

    /// Keeps an address; returns it as the kernel wants it.
    pub(super) fn keep_address(
        &mut self,
        address: SocketAddr,
    ) -> (*const libc::sockaddr, libc::socklen_t) {
        // SAFETY: as in `fill`: a live allocation lent to us alone.
        let place = unsafe { &mut (*self.0.as_ptr()).address };
        let kept = place.insert(address.as_any());
        (kept.as_ptr().cast(), kept.addr_len())
    }
}

/// Areas that were used before, for the next op.
pub(super) struct AreaPool {
    free: Vec<AreaLoan>,
}

impl AreaPool {
    pub(super) fn new() -> Self {
        Self { free: Vec::new() }
    }

    pub(super) fn take(&mut self) -> AreaLoan {
        self.free.pop().unwrap_or_else(|| {
            let empty = libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            };
            let area = Area {
                // SAFETY: msghdr is plain integers and pointers; all zero is a valid value.
                message: unsafe { std::mem::zeroed() },
                vectors: [empty; SEND_PARTS_MAX],
                address: None,
            };
            AreaLoan(NonNull::from(Box::leak(Box::new(area))))
        })
    }

    /// Takes an area back, once the kernel is done with it.
    pub(super) fn give_back(&mut self, loan: AreaLoan) {
        self.free.push(loan);
    }
}

impl Drop for AreaPool {
    fn drop(&mut self) {
        for loan in self.free.drain(..) {
            // SAFETY: the pointer came from `Box::leak` in `take`; a loan in the free list is the
            // only one for its area, and no op has it. Loans of ops in flight are not here: if the
            // driver cannot drain them, their areas leak, as they must.
            drop(unsafe { Box::from_raw(loan.0.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_continued_send_skips_what_was_sent() {
        let mut pool = AreaPool::new();
        let mut loan = pool.take();
        let (a, b, c) = ([0u8; 10], [0u8; 5], [0u8; 7]);
        let parts = [(a.as_ptr(), 10), (b.as_ptr(), 5), (c.as_ptr(), 7)];
        let message = loan.fill(parts.into_iter(), 12);
        // SAFETY: `fill` returned a pointer into the live area, which nobody else uses here.
        let message = unsafe { &*message };
        let (vectors, count) = (message.msg_iov, message.msg_iovlen);
        assert_eq!(count, 2);
        // SAFETY: two vectors were filled.
        let filled = unsafe { std::slice::from_raw_parts(vectors, 2) };
        assert_eq!(
            (filled[0].iov_base.cast_const().cast(), filled[0].iov_len),
            (&raw const b[2], 3)
        );
        assert_eq!(
            (filled[1].iov_base.cast_const().cast(), filled[1].iov_len),
            (c.as_ptr(), 7)
        );
        pool.give_back(loan);
    }
}
