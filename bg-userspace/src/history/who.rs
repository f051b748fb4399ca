//! The user who runs this process, for the journal.

use serde::{Deserialize, Serialize};

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The name, if it is known.
    pub user: Option<String>,
    /// The numeric id. [`Who::NO_USER`] is somebody who is known by a token or a certificate.
    pub uid: u32,
}

impl Who {
    /// The id that no user has.
    pub const NO_USER: u32 = u32::MAX;

    /// Somebody who is known by a token or a certificate, and need not be a user of this machine.
    #[cfg(feature = "serve")]
    pub(crate) fn elsewhere(name: &str) -> Self {
        Self { user: Some(name.to_owned()), uid: Self::NO_USER }
    }

    /// The data path, which has made a change while nobody ran.
    pub(crate) fn kernel() -> Self {
        Self { user: Some("kernel".to_owned()), uid: 0 }
    }

    /// The user who runs this process. Under sudo, the user who called sudo.
    pub fn of_this_process() -> Self {
        let sudo = |variable| std::env::var(variable).ok();
        if let (Some(user), Some(uid)) = (sudo("SUDO_USER"), sudo("SUDO_UID").and_then(|uid| uid.parse().ok())) {
            return Self { user: Some(user), uid };
        }
        let uid = rustix::process::getuid().as_raw();
        let user = std::fs::read_to_string("/etc/passwd").ok().and_then(|passwd| name_in(&passwd, uid));
        Self { user, uid }
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.user {
            Some(user) => f.write_str(user),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_its_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n\nbroken\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n";
        assert_eq!(name_in(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd, 33).as_deref(), Some("www-data"));
        assert_eq!(name_in(passwd, 3), None);
    }
}
