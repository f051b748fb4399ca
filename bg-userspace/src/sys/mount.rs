//! Mounting the BPF file system where nobody has done so yet, as bpftool and iproute2 do.

use std::{io, path::Path};

/// Mounts a BPF file system on `directory`.
pub(crate) fn mount_bpf_file_system(directory: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let target = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
    let options = c"mode=0700";
    // SAFETY: all four strings end in a zero octet and outlive the call.
    let result = unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, options.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
