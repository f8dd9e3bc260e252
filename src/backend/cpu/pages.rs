//! The CPU's memory: anonymous pages, or, without the feature `mmap`, the allocator's. Either begins as zeros, and a page
//! is taken when it is first touched.

pub use imp::Pages;

#[cfg(feature = "mmap")]
mod imp {
    use memmap2::MmapMut;

    /// One allocation.
    pub struct Pages {
        map: MmapMut,
        bytes: u64,
    }

    /// Allocations of at least this many bytes ask for huge pages.
    #[cfg(target_os = "linux")]
    const HUGE: u64 = 16 << 20;

    impl Pages {
        /// `bytes` of zeros; `None` if the system refuses them.
        pub fn new(bytes: u64) -> Option<Pages> {
            let map = MmapMut::map_anon(usize::try_from(bytes).ok()?.max(1)).ok()?;
            // Pages of 2 MiB, where the system has some: a step walks through all of the memory, and 4 KiB at a time the
            // processor spends a tenth of it looking up addresses. Where it has none, nothing is lost.
            #[cfg(target_os = "linux")]
            if bytes >= HUGE {
                let _ = map.advise(memmap2::Advice::HugePage);
            }
            Some(Pages { map, bytes })
        }

        pub fn bytes(&self) -> u64 {
            self.bytes
        }

        /// Address of the first byte, a multiple of [`crate::dtype::ALIGN`].
        pub fn start(&self) -> *mut u8 {
            self.map.as_ptr().cast_mut()
        }
    }
}

#[cfg(not(feature = "mmap"))]
mod imp {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::ptr::NonNull;

    use crate::dtype::ALIGN;

    /// One allocation.
    pub struct Pages {
        whole: NonNull<u8>,
        layout: Layout,
        bytes: u64,
    }

    // SAFETY: it owns its memory, as a `Vec` does.
    unsafe impl Send for Pages {}

    impl Pages {
        /// `bytes` of zeros; `None` if the system refuses them.
        pub fn new(bytes: u64) -> Option<Pages> {
            // Room to move the start up to its boundary: an allocator that is asked for the boundary writes the zeros
            // itself, and so takes every page.
            let room = usize::try_from(bytes).ok()?.checked_add(ALIGN)?;
            let layout = Layout::from_size_align(room, 1).ok()?;
            // SAFETY: the layout's size is not zero.
            let whole = NonNull::new(unsafe { alloc_zeroed(layout) })?;
            Some(Pages { whole, layout, bytes })
        }

        pub fn bytes(&self) -> u64 {
            self.bytes
        }

        /// Address of the first byte, a multiple of [`ALIGN`].
        pub fn start(&self) -> *mut u8 {
            let whole = self.whole.as_ptr();
            // In a block that is larger by that much, the boundary is reached before its end.
            whole.wrapping_add(whole.align_offset(ALIGN))
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.whole.as_ptr(), self.layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pages;
    use crate::dtype::ALIGN;

    #[test]
    fn pages_are_aligned_zeros_and_may_be_refused() {
        for bytes in [0, 1, 255, 4097, 20 << 20] {
            let pages = Pages::new(bytes).unwrap();
            assert_eq!(pages.bytes(), bytes);
            assert!((pages.start() as usize).is_multiple_of(ALIGN));
            // SAFETY: the allocation's own bytes, which nothing writes.
            let all = unsafe { std::slice::from_raw_parts(pages.start(), bytes as usize) };
            assert!(all.iter().all(|&b| b == 0));
        }
        assert!(Pages::new(u64::MAX).is_none());
        assert!(Pages::new(1 << 60).is_none());
    }
}
