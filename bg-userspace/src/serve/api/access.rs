//! Who a request is from, and which role that gives.
//!
//! | the request comes | and has | it is from |
//! | --- | --- | --- |
//! | anyhow | a token | the one whose token it is, with the role in the file |
//! | over TLS | a certificate of `client_ca` | its common name, with the role in the file of tokens, else viewer |
//! | over the Unix socket | nothing | the user of the peer process |
//! | over TCP from this host, if there is no file of tokens | nothing | the user who owns the socket at the other end |
//!
//! Of users, root and the controller's own user are admins, members of `socket_group` are operators, and others are refused.

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    peer::{Over, Peer},
    role::{Identity, Role},
    tokens::Tokens,
    users::{self, User},
};
use crate::{config::model::Serve, serve::error::ServeError};

/// Who may what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Access {
    group: Option<u32>,
    tokens: Option<Tokens>,
}

/// Why a request is from nobody who may do anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It does not say whom it is from, or says it wrongly.
    Unknown(&'static str),
    /// It is from a user who has no role.
    NoRole(String),
}

impl Access {
    /// As configured.
    pub(super) fn load(serve: &Serve) -> Result<Self, ServeError> {
        let group = serve
            .socket_group
            .as_ref()
            .map(|name| users::group(name).map_err(ServeError::io(format!("let the group \"{name}\" use the API"))));
        let tokens = serve.tokens.as_ref().map(|path| Tokens::load(path));
        Ok(Self { group: group.transpose()?, tokens: tokens.transpose()? })
    }

    /// The group of the socket.
    pub(super) fn group(&self) -> Option<u32> {
        self.group
    }

    /// Whom a request is from.
    pub(super) fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Identity, Denied> {
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(value) = given.next() {
            let identity = self.of_token(value).filter(|_| given.next().is_none());
            return identity.ok_or(Denied::Unknown("the token is not known: see `tokens` in [serve]"));
        }
        if let Some(name) = &peer.certificate {
            let role = self.tokens.as_ref().and_then(|tokens| tokens.of_certificate(name));
            return Ok(Identity::named(name, role.unwrap_or(Role::Viewer)));
        }
        match (peer.over, &peer.user) {
            (Over::Socket, Some(user)) => self.of_user(user),
            // The kernel's table of connections is not made for this. It is good enough for a role, and not for commands.
            (Over::Loopback, Some(user)) if self.tokens.is_none() => {
                self.of_user(user).map(|identity| Identity { is_root_here: false, ..identity })
            }
            (Over::Loopback, None) if self.tokens.is_none() => Err(Denied::Unknown(
                "it is not known which user this connection is from: use the Unix socket, or a token",
            )),
            _ => Err(Denied::Unknown(
                "a token is needed: `Authorization: Bearer TOKEN`, or as the password of a browser",
            )),
        }
    }

    fn of_user(&self, User { who, groups }: &User) -> Result<Identity, Denied> {
        let is_root = who.uid == 0 || who.uid == rustix::process::geteuid().as_raw();
        let is_member = self.group.is_some_and(|group| groups.contains(&group));
        let role = if is_root {
            Role::Admin
        } else if is_member {
            Role::Operator
        } else {
            return Err(Denied::NoRole(who.to_string()));
        };
        Ok(Identity { who: who.clone(), role, is_root_here: is_root })
    }

    /// Of `Bearer TOKEN`, or of `Basic` with the token as password, after its name or nothing.
    fn of_token(&self, value: &HeaderValue) -> Option<Identity> {
        let tokens = self.tokens.as_ref()?;
        let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
        let credentials = credentials.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            let (name, role) = tokens.find(credentials.as_bytes())?;
            return Some(Identity::named(name, role));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let text = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
        let (user, token) = text.split_once(':')?;
        let (name, role) = tokens.find(token.as_bytes())?;
        (user.is_empty() || user == name).then(|| Identity::named(name, role))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::history::Who;

    fn access(group: Option<u32>, has_tokens: bool) -> Access {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
        let hash = |token: &str| Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        writeln!(file, "eve viewer {}\nci operator {}\ncert:edge admin -", hash("look"), hash("change")).unwrap();
        Access { group, tokens: has_tokens.then(|| Tokens::load(file.path()).unwrap()) }
    }

    fn peer(over: Over, uid: Option<u32>) -> Peer {
        let user = uid.map(|uid| User { who: Who { user: None, uid }, groups: vec![uid, 50] });
        Peer { over, user, certificate: None }
    }

    fn headers(authorization: &[&str]) -> HeaderMap {
        authorization.iter().map(|value| (header::AUTHORIZATION, value.parse().unwrap())).collect()
    }

    fn role(access: &Access, peer: &Peer, authorization: &[&str]) -> Option<(String, Role)> {
        let identity = access.identify(peer, &headers(authorization)).ok()?;
        Some((identity.who.to_string(), identity.role))
    }

    #[test]
    fn users_have_the_role_of_their_group() {
        let access = access(Some(50), false);
        for over in [Over::Socket, Over::Loopback] {
            assert_eq!(role(&access, &peer(over, Some(0)), &[]), Some(("uid 0".to_owned(), Role::Admin)));
            assert_eq!(role(&access, &peer(over, Some(7)), &[]), Some(("uid 7".to_owned(), Role::Operator)));
            assert_eq!(role(&Access { group: Some(51), tokens: None }, &peer(over, Some(7)), &[]), None);
            assert_eq!(role(&Access::default(), &peer(over, Some(7)), &[]), None);
        }
        assert_eq!(role(&access, &peer(Over::Loopback, None), &[]), None);
        assert_eq!(role(&access, &peer(Over::Network, None), &[]), None);
    }

    #[test]
    fn with_tokens_loopback_needs_one_and_the_socket_does_not() {
        let access = access(Some(50), true);
        assert_eq!(role(&access, &peer(Over::Loopback, Some(0)), &[]), None);
        assert_eq!(role(&access, &peer(Over::Socket, Some(7)), &[]).unwrap().1, Role::Operator);
        for over in [Over::Socket, Over::Loopback, Over::Network] {
            let ci = Some(("ci".to_owned(), Role::Operator));
            // "ci:change", ":change", "eve:change".
            for value in ["Bearer change", "bearer  change", "Basic Y2k6Y2hhbmdl", "Basic OmNoYW5nZQ=="] {
                assert_eq!(role(&access, &peer(over, Some(7)), &[value]), ci, "{value}");
            }
            for value in ["Bearer chang", "Bearer", "Basic ZXZlOmNoYW5nZQ==", "Basic change", "Digest change", ""] {
                assert_eq!(role(&access, &peer(over, Some(0)), &[value]), None, "{value}");
            }
            assert_eq!(role(&access, &peer(over, Some(0)), &["Bearer change", "Bearer look"]), None, "two tokens");
        }
    }

    #[test]
    fn a_certificate_has_the_role_of_the_file_or_may_look() {
        let with = |name: &str| Peer { certificate: Some(name.to_owned()), ..peer(Over::Network, None) };
        assert_eq!(role(&access(None, true), &with("edge"), &[]), Some(("edge".to_owned(), Role::Admin)));
        assert_eq!(role(&access(None, true), &with("ci"), &[]), Some(("ci".to_owned(), Role::Viewer)));
        assert_eq!(role(&access(None, false), &with("edge"), &[]), Some(("edge".to_owned(), Role::Viewer)));
        assert_eq!(role(&access(None, true), &with("edge"), &["Bearer wrong"]), None, "a wrong token is no token");
    }
}
