//! Requests that a browser sends on behalf of some other page.
//!
//! A page elsewhere can have a browser send requests here, and a name of its own can lead to this address (DNS rebinding). So over TCP, the
//! name in `Host` must be an address, or a name that is known to be this host's. A page that has come from here says so in
//! `Origin` and `Sec-Fetch-Site`.

use std::{collections::BTreeSet, net::IpAddr};

use axum::http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority};

use super::{peer::Over, problem::Problem};

/// The names of this host.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts(BTreeSet<String>);

impl Hosts {
    /// These, the host's name, and `localhost`.
    pub(super) fn new(names: impl IntoIterator<Item = String>) -> Self {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let names = names.into_iter().chain([own, "localhost".to_owned()]);
        Self(names.map(|name| name.to_ascii_lowercase()).collect())
    }

    fn has(&self, authority: &Authority) -> bool {
        let host = authority.host();
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        // A certificate may be for all names of a domain.
        let any = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        // No name has led a browser to an address that is written out.
        address.parse::<IpAddr>().is_ok() || self.0.contains(&name) || any.is_some_and(|any| self.0.contains(&any))
    }

    /// Refuses what a page of somebody else may have sent.
    pub(super) fn check(&self, over: Over, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let (origin, site) = (text("origin"), text("sec-fetch-site"));
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let host = uri.authority().cloned().or(host).filter(|_| hosts.next().is_none());
        if over != Over::Socket || origin.is_some() || site.is_some() {
            let host = host.as_ref().ok_or_else(|| Problem::usage("the header Host must have one name"))?;
            if !self.has(host) {
                let why = format!(
                    "this host is not known as \"{}\": use its address, or a name of its certificate",
                    host.host()
                );
                return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, why));
            }
        }
        let is_own = |origin: &str| {
            let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            host.as_ref().is_some_and(|host| authority.is_some_and(|own| own.eq_ignore_ascii_case(host.as_str())))
        };
        // A link from elsewhere may lead to the page, which shows nothing to the one who has set the link.
        let is_visit = *method == Method::GET && text("sec-fetch-mode") == Some("navigate") && uri.path() == "/";
        let is_other = origin.is_some_and(|origin| !is_own(origin))
            || !is_visit && site.is_some_and(|site| !["same-origin", "none"].contains(&site));
        if is_other {
            return Err(Problem::new(StatusCode::FORBIDDEN, "this request was sent by a page of another origin"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(over: Over, method: Method, uri: &str, headers: &[(&'static str, &str)]) -> u16 {
        let hosts = Hosts::new(["edge.example".to_owned()]);
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        hosts
            .check(over, &method, &uri.parse().unwrap(), &headers)
            .map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for host in ["127.0.0.1:7470", "localhost", "[::1]:7470", "edge.example:7470", "EDGE.example", "198.51.100.7"] {
            assert_eq!(status(Over::Loopback, Method::GET, "/v1/status", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:7470", "localhost.evil.example", "edge.example.evil"] {
            assert_eq!(status(Over::Loopback, Method::GET, "/v1/status", &[("host", host)]), 421, "{host}");
            assert_eq!(status(Over::Socket, Method::GET, "/v1/status", &[("host", host)]), 200, "no browser is there");
            let site = ("sec-fetch-site", "same-origin");
            assert_eq!(
                status(Over::Socket, Method::GET, "/v1/status", &[("host", host), site]),
                421,
                "but here is one"
            );
        }
        assert_eq!(status(Over::Network, Method::GET, "/", &[]), 400);
        assert_eq!(status(Over::Network, Method::GET, "/", &[("host", "127.0.0.1"), ("host", "localhost")]), 400);
        assert_eq!(status(Over::Network, Method::GET, "http://evil.example/", &[("host", "127.0.0.1")]), 421);
    }

    #[test]
    fn a_certificate_may_be_for_all_names_of_a_domain_but_not_for_those_below() {
        let hosts = Hosts::new(["*.Edge.example".to_owned()]);
        let has = |host: &str| hosts.has(&host.parse().unwrap());
        assert!(["west.edge.example", "WEST.EDGE.EXAMPLE:7470", "west.edge.example."].into_iter().all(has));
        assert!(
            !["edge.example", "far.west.edge.example", "edge.example.evil", "west.edge.example.evil"]
                .into_iter()
                .any(has)
        );
    }

    #[test]
    fn pages_of_others_are_refused() {
        let host = ("host", "localhost:7470");
        let post = |origin: &str| status(Over::Loopback, Method::POST, "/v1/apply", &[host, ("origin", origin)]);
        assert_eq!(post("http://localhost:7470"), 200);
        for origin in ["http://localhost:8080", "http://evil.example", "null", "http://localhost", "localhost:7470"] {
            assert_eq!(post(origin), 403, "{origin}");
        }
        let site = |site, path, mode| {
            let headers = [host, ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            status(Over::Loopback, Method::GET, path, &headers)
        };
        assert_eq!([site("same-origin", "/v1/status", "cors"), site("none", "/v1/status", "navigate")], [200; 2]);
        assert_eq!([site("cross-site", "/v1/status", "cors"), site("same-site", "/v1/status", "no-cors")], [403; 2]);
        assert_eq!([site("cross-site", "/v1/status", "navigate"), site("cross-site", "/", "no-cors")], [403; 2]);
        assert_eq!(site("cross-site", "/", "navigate"), 200, "a link to the page");
    }
}
