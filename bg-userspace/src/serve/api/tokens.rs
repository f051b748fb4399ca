//! The file of tokens: a name, a role and the SHA-256 of the token on each line.
//!
//! The file has no secret that lets somebody in, but says who may do what, so others must neither read nor write it. A line `cert:NAME ROLE -`
//! gives a role to client certificates of that common name.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::role::Role;
use crate::serve::error::ServeError;

/// The most tokens of a file.
const MOST: usize = 10_000;
/// The longest file.
const LONGEST: u64 = 1 << 21;

/// The tokens of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    tokens: Vec<Token>,
    certificates: HashMap<String, Role>,
}

#[derive(Debug, PartialEq, Eq)]
struct Token {
    name: String,
    role: Role,
    hash: [u8; 32],
}

impl Tokens {
    /// Reads a file.
    pub(super) fn load(path: &Path) -> Result<Self, ServeError> {
        let shown = path.display();
        let io = |source| ServeError::Io { doing: format!("read the tokens of {shown}"), source };
        let mut file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        let invalid = |why: String| io(io::Error::new(io::ErrorKind::InvalidData, why));
        if metadata.mode() & 0o007 != 0 || metadata.mode() & 0o020 != 0 {
            let (mode, why) = (metadata.mode() & 0o777, "others can read or write it, or its group can write it");
            return Err(invalid(format!("its mode is {mode:03o}, so {why}: run `chmod 640 {shown}`")));
        }
        let us = rustix::process::geteuid().as_raw();
        if ![0, us].contains(&metadata.uid()) {
            return Err(invalid(format!(
                "it belongs to uid {}, not to root: run `chown root {shown}`",
                metadata.uid()
            )));
        }
        let mut text = String::new();
        file.by_ref().take(LONGEST).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text).map_err(invalid)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Self::default();
        for (number, line) in text.lines().enumerate().map(|(nth, line)| (nth + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            tokens.add(line).map_err(|why| format!("line {number}: {why}"))?;
        }
        match tokens.tokens.len() {
            ..=MOST => Ok(tokens),
            many => Err(format!("{many} tokens are more than {MOST}")),
        }
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [name, role, hash] = words[..] else {
            return Err(format!("expected \"NAME ROLE SHA256-OF-TOKEN\", got {} words", words.len()));
        };
        let known = || Role::ALL.map(Role::name).join(", ");
        let found = Role::ALL.into_iter().find(|known| known.name() == role);
        let role = found.ok_or_else(|| format!("expected one of the roles {}, got \"{role}\"", known()))?;
        let is_plain = |name: &str| !name.is_empty() && name.len() <= 64 && !name.contains(char::is_control);
        let name = match (name.strip_prefix("cert:"), hash) {
            (Some(name), "-") if is_plain(name) => {
                self.certificates.insert(name.to_owned(), role);
                return Ok(());
            }
            (None, _) if is_plain(name) && !name.contains(':') => name.to_owned(),
            _ => return Err("expected a name of at most 64 characters, or \"cert:NAME ROLE -\"".to_owned()),
        };
        // The text is not quoted: somebody may have written the token itself.
        let hash = from_hex(hash).ok_or("expected the SHA-256 of the token in 64 hexadecimal digits")?;
        self.tokens.push(Token { name, role, hash });
        Ok(())
    }

    /// The name and role of a token. How long this takes does not depend on the token.
    pub(super) fn find(&self, token: &[u8]) -> Option<(&str, Role)> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (index, token) in (0..).zip(&self.tokens) {
            found.conditional_assign(&index, token.hash.ct_eq(&hash));
        }
        let token = self.tokens.get(usize::try_from(found).ok()?)?;
        Some((&token.name, token.role))
    }

    /// The role that the file gives to a certificate.
    pub(super) fn of_certificate(&self, name: &str) -> Option<Role> {
        self.certificates.get(name).copied()
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    // `from_str_radix` takes a sign too.
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Of "secret".
    const HASH: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    #[test]
    fn a_token_is_found_by_its_hash() {
        let text = format!("# comment\n\nci operator {HASH}\n  cert:edge.example admin -\n");
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.find(b"secret"), Some(("ci", Role::Operator)));
        assert_eq!([&b"secret "[..], b"", HASH.as_bytes()].map(|token| tokens.find(token)), [None; 3]);
        assert_eq!(tokens.of_certificate("edge.example"), Some(Role::Admin));
        assert_eq!([tokens.of_certificate("ci"), tokens.of_certificate("cert:edge.example")], [None; 2]);
    }

    #[test]
    fn a_line_that_cannot_be_meant_is_refused_without_being_quoted() {
        for (line, why) in [
            ("ci operator", "got 2 words"),
            ("ci root 00", "roles viewer, operator, admin"),
            ("ci operator my-own-token", "64 hexadecimal digits"),
            ("cert:x operator 00", "cert:NAME ROLE -"),
            (&format!("ci operator +{}", &HASH[1..]), "64 hexadecimal digits"),
        ] {
            let text = format!("a viewer {HASH}\n{line}\n");
            let error = Tokens::parse(&text).expect_err(line);
            assert!(error.starts_with("line 2: ") && error.contains(why), "{error}");
            assert!(!error.contains("my-own-token"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, format!("ci operator {HASH}\n")).unwrap();
        for (mode, is_taken) in [(0o600, true), (0o640, true), (0o644, false), (0o602, false), (0o660, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Tokens::load(&path).is_ok(), is_taken, "{mode:o}");
        }
    }
}
