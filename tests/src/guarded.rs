//! The memory that a frame is in while the engine has it: behind its last byte there is none, so that an access beyond it ends the process, as it
//! would end in a refusal by the verifier. What stands in front of the frame is compared afterwards.

use std::{cell::RefCell, ptr};

/// The longest frame that has room; a longer one lies in plain memory.
const ROOM: usize = 128 << 10;

/// Bytes in front of a frame that nobody may write.
const FRONT: usize = 64;
const UNTOUCHED: u8 = 0xc5;

thread_local! {
    static BUFFER: RefCell<Option<Buffer>> = const { RefCell::new(None) };
}

/// Puts a frame into guarded memory, has it worked on there, and takes it out again.
pub fn guarded<T>(frame: &mut Vec<u8>, work: impl FnOnce(*mut u8, *mut u8) -> T) -> T {
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        // Miri knows the bounds of all memory.
        Ok(mut buffer) if !cfg!(miri) && frame.len() <= ROOM - FRONT => {
            buffer.get_or_insert_with(Buffer::new).with(frame, work)
        }
        // What another CPU does meanwhile comes here, too.
        _ => {
            frame.shrink_to_fit();
            let range = frame.as_mut_ptr_range();
            work(range.start, range.end)
        }
    })
}

/// Memory between two pages that cannot be accessed.
struct Buffer {
    start: *mut u8,
    page: usize,
}

impl Buffer {
    fn new() -> Self {
        // SAFETY: it has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let map = |at: *mut u8, len, access, more| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | more;
            // SAFETY: either new memory, or a part of what was just made.
            let made = unsafe { libc::mmap(at.cast(), len, access, flags, -1, 0) };
            assert_ne!(made, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            made.cast::<u8>()
        };
        let all = map(ptr::null_mut(), ROOM + 2 * page, libc::PROT_NONE, 0);
        let start = map(all.wrapping_add(page), ROOM, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED);
        Self { start, page }
    }

    fn with<T>(&mut self, frame: &mut [u8], work: impl FnOnce(*mut u8, *mut u8) -> T) -> T {
        let end = self.start.wrapping_add(ROOM);
        let at = end.wrapping_sub(frame.len());
        let front = at.wrapping_sub(FRONT);
        // SAFETY: all of it lies in this buffer's memory, which nobody else has.
        unsafe {
            ptr::write_bytes(front, UNTOUCHED, FRONT);
            ptr::copy_nonoverlapping(frame.as_ptr(), at, frame.len());
        }
        let result = work(at, end);
        // SAFETY: as above; `work` is done.
        let front = unsafe {
            ptr::copy_nonoverlapping(at, frame.as_mut_ptr(), frame.len());
            std::slice::from_raw_parts(front, FRONT)
        };
        assert!(front.iter().all(|byte| *byte == UNTOUCHED), "bytes in front of the frame were written");
        result
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: made by `new`; nothing points into it any more.
        unsafe { libc::munmap(self.start.wrapping_sub(self.page).cast(), ROOM + 2 * self.page) };
    }
}
