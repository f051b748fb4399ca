//! Parts of requests that are taken only as they must be.

use axum::{
    extract::{FromRequestParts, Query as Loose},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A query with known keys.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Loose::<T>::try_from_uri(&parts.uri) {
            Ok(Loose(query)) => Ok(Self(query)),
            Err(error) => Err(Problem::usage(format!("the query is not as expected: {}", error.body_text()))),
        }
    }
}

/// Refuses a body of another type. The types that a form of a page elsewhere can send are none of those.
pub(super) fn content_is(headers: &HeaderMap, known: &[&str]) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if known.iter().any(|known| known.eq_ignore_ascii_case(essence)) {
        return Ok(());
    }
    let why = format!("expected a body of type {}, got \"{}\"", known[0], essence.escape_default());
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why))
}
