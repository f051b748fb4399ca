//! A gate whose program cannot even be started, since its file system does not respond.

use crate::{Gated, PATIENCE, gate};
use anyhow::{Result, ensure};
use bg_tests::config::{DEPLOYMENT, NEIGHBOUR};
use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Each `execve` of the program waits for an answer that nobody gives, until this is dropped.
struct Hanging(#[expect(dead_code, reason = "its end lets them go")] OwnedFd);

impl Hanging {
    fn new(program: &Path) -> Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::fanotify_init(libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC, libc::O_RDONLY as u32) };
        ensure!(fd >= 0, "no fanotify: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let path = CString::new(program.as_os_str().as_bytes())?;
        // SAFETY: the path ends with a zero byte.
        let marked = unsafe {
            libc::fanotify_mark(
                fd.as_raw_fd(),
                libc::FAN_MARK_ADD,
                libc::FAN_OPEN_EXEC_PERM,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        ensure!(marked == 0, "no mark: {}", std::io::Error::last_os_error());
        Ok(Self(fd))
    }
}

#[test]
fn a_gate_that_hangs_before_it_has_begun_is_late_like_any_other() -> Result<()> {
    let lab = Gated::new()?;
    let program = lab.file("gate");
    fs::copy("/bin/true", &program)?;
    let gates = |when: &str| {
        let lines =
            format!("kind = \"exec\"\ncommand = [\"{}\"]\ntimeout = \"1s\"\ninterval = \"100ms\"", program.display());
        [gate(DEPLOYMENT, when, &lines), gate(NEIGHBOUR, when, &lines)]
    };
    lab.apply(&gates("before"))?;
    let hanging = Hanging::new(&program)?;
    lab.refused(&[], &["it had not ended after 1s", "blue stays live"]);
    lab.apply(&gates("after"))?;
    for arguments in [&["switch", DEPLOYMENT][..], &["drill", DEPLOYMENT]] {
        let said = lab.run(arguments)?;
        let text = said.out + &said.err;
        assert!(said.code == Some(3) && text.contains("it had not ended after 1s"), "{arguments:?}: {text}");
        assert!(said.took < PATIENCE, "{arguments:?}: {:?}", said.took);
        assert_eq!(lab.state(DEPLOYMENT)?.0, "blue", "{arguments:?}");
    }
    drop(hanging);
    assert_eq!(lab.run(&["switch", DEPLOYMENT, "--confirm-within", "2s"])?.code, Some(0), "it responds again");
    Ok(())
}
