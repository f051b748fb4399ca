//! No tracked file may have a conflict marker: in prose and configuration, nothing else would notice one.

use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::{fs, process::Command};

/// Fails if a tracked file has a line that begins or ends one side of a conflict.
pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let mut git = Command::new("git");
    // `sudo cargo xtask test` is run by another user than the one who has cloned.
    git.args(["-c", "safe.directory=*", "ls-files", "-z"]).current_dir(root);
    let listed = git.output().context("cannot run git")?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
    let names = String::from_utf8(listed.stdout).context("a file has a name that is not UTF-8")?;
    let mut found = Vec::new();
    for name in names.split_terminator('\0') {
        // One that was deleted and not committed yet has none.
        let Ok(content) = fs::read(root.join(name)) else { continue };
        found.extend(markers(&content).into_iter().map(|line| format!("{name}:{line}")));
    }
    if !found.is_empty() {
        bail!("conflict markers: {}", found.join(", "));
    }
    Ok(())
}

/// The numbers of the lines that are conflict markers.
fn markers(content: &[u8]) -> Vec<usize> {
    let is_marker =
        |line: &[u8]| [b'<', b'>'].into_iter().any(|sign| line.starts_with(&[&[sign; 7][..], b" "].concat()));
    content
        .split(|byte| *byte == b'\n')
        .zip(1..)
        .filter(|(line, _)| is_marker(line))
        .map(|(_, number)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_at_the_beginning_of_a_line_only() {
        let [ours, theirs] = ["<", ">"].map(|sign| sign.repeat(7));
        let text = format!("one\n{ours} HEAD\ntwo\n=======\nthree\n{theirs} abc\n {ours} HEAD\n{ours}\n{ours}< x\n");
        assert_eq!(markers(text.as_bytes()), [2, 6]);
        assert_eq!(markers(b""), [0; 0]);
    }

    #[test]
    fn this_repository_has_none() {
        check().unwrap();
    }
}
