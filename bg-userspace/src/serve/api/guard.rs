//! What each request passes before and after its handler.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::{Extension, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::timeout;

use super::{
    access::Denied,
    forbid::{Sender, forbid},
    peer::{Over, Peer},
    problem::Problem,
    role::{Identity, Role},
    shared::Api,
};

/// The longest body.
const LONGEST: usize = 1 << 20;
/// How long a client may take to send it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(30);

/// Makes each error a problem, and says what a browser may do with the answer.
pub(super) async fn finish(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    let content_type = |response: &Response| response.headers().get(header::CONTENT_TYPE).cloned();
    if status.as_u16() >= 400 && content_type(&response).is_none_or(|it| it != "application/problem+json") {
        let allow = response.headers().get(header::ALLOW).cloned();
        let text = to_bytes(response.into_body(), 4096).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let detail = match text.trim() {
            "" => status.canonical_reason().unwrap_or("the request has failed"),
            text => text,
        };
        response = Problem::new(status, detail).into_response();
        allow.map(|allow| response.headers_mut().insert(header::ALLOW, allow));
    }
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
                          connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets a request pass whose sender may do what it asks for.
pub(super) async fn admit(
    State(api): State<Arc<Api>>,
    Extension(peer): Extension<Arc<Peer>>,
    mut request: Request,
    next: Next,
) -> Response {
    match admitted(&api, &peer, &request) {
        Ok(Some(identity)) => {
            request.extensions_mut().insert(identity);
        }
        Ok(None) => {}
        Err(problem) => return problem.into_response(),
    }
    let (parts, body) = request.into_parts();
    let body = match parts.method {
        Method::GET | Method::HEAD | Method::OPTIONS => Ok(Body::empty()),
        _ => whole(body).await,
    };
    let request = match body {
        Ok(body) => Request::from_parts(parts, body),
        Err(problem) => return problem.into_response(),
    };
    if *request.method() == Method::POST {
        // A change takes the time that it takes.
        return next.run(request).await;
    }
    match timeout(LOOK, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::busy("this takes too long").into_response(),
    }
}

fn admitted(api: &Api, peer: &Peer, request: &Request) -> Result<Option<Identity>, Problem> {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    api.hosts.borrow().check(peer.over, method, uri, headers).inspect_err(|problem| {
        if let Some(left_out) = api.strangers.tell() {
            tracing::warn!(left_out, "refused {method} {:?}: {}", uri.path(), problem.detail);
        }
    })?;
    let Some(needs) = needs(peer.over, method, uri.path()) else { return Ok(None) };
    let access = api.access.borrow().clone();
    let identity = access.identify(peer, headers);
    let (sender, why) = match &identity {
        Ok(identity) if identity.role >= needs => return Ok(Some(identity.clone())),
        Ok(identity) => {
            let (who, role) = (&identity.who, identity.role.name());
            (identity.into(), format!("{who} has the role {role}, and this needs {}", needs.name()))
        }
        Err(Denied::NoRole(who)) => {
            let why =
                format!("{who} has no role here: only root and the members of `socket_group` in [serve] have one");
            (Sender::without_role(who.clone()), why)
        }
        Err(Denied::Unknown(why)) => {
            if let Some(left_out) = api.strangers.tell() {
                tracing::warn!(left_out, "refused {method} {:?}: {why}", uri.path());
            }
            return Err(Problem::new(StatusCode::UNAUTHORIZED, *why));
        }
    };
    Err(forbid(api, sender, needs.name(), &format!("{method} {}", uri.path()), why))
}

/// The role that a request needs. What is not known needs one too, so that nothing is told of what there is.
fn needs(over: Over, method: &Method, path: &str) -> Option<Role> {
    match (method.as_str(), path) {
        ("GET" | "HEAD", "/healthz") => None,
        ("GET" | "HEAD", "/metrics") if over != Over::Network => None,
        ("GET" | "HEAD" | "OPTIONS", _) => Some(Role::Viewer),
        (_, path) if path.starts_with("/v1/deployments/") => Some(Role::Operator),
        _ => Some(Role::Admin),
    }
}

/// The body, if it comes in time and is not too long.
async fn whole(body: Body) -> Result<Body, Problem> {
    let too_long =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("expected a body of at most {LONGEST} bytes"));
    if axum::body::HttpBody::size_hint(&body).lower() > LONGEST as u64 {
        return Err(too_long());
    }
    match timeout(PATIENCE, Limited::new(body, LONGEST).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(error)) => Err(Problem::usage(format!("the body could not be read: {error}"))),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_needs_its_role() {
        let of = |method: Method, path| needs(Over::Network, &method, path);
        assert_eq!([of(Method::GET, "/healthz"), of(Method::POST, "/healthz")], [None, Some(Role::Admin)]);
        assert_eq!(of(Method::GET, "/metrics"), Some(Role::Viewer));
        assert_eq!([Over::Socket, Over::Loopback].map(|over| needs(over, &Method::GET, "/metrics")), [None; 2]);
        for path in ["/", "/openapi.json", "/v1/status", "/v1/events", "/unknown", "/v1/deployments/shop/switch"] {
            assert_eq!(of(Method::GET, path), Some(Role::Viewer), "{path}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert_eq!(of(method.clone(), "/v1/deployments/shop/switch"), Some(Role::Operator));
            for path in ["/v1/apply", "/v1/check", "/v1/plan", "/v1/deployments", "/"] {
                assert_eq!(of(method.clone(), path), Some(Role::Admin), "{path}");
            }
        }
    }
}
