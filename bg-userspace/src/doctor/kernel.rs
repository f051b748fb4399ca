//! The version of the running kernel.

use std::{fmt, fs, io};

/// The major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.12.
    pub major: u32,
    /// 12 of 6.12.
    pub minor: u32,
}

impl KernelVersion {
    /// The version of the running kernel, and its release string.
    pub fn running() -> io::Result<(Self, String)> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let version = Self::parse(&release).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("no kernel version in the release \"{release}\""))
        })?;
        Ok((version, release))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        let version = |release| KernelVersion::parse(release).map(|v| (v.major, v.minor));
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("7.2-rc1+deb14"), Some((7, 2)));
        assert_eq!(version("linux"), None);
    }
}
