//! Errors as `application/problem+json` (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::{Error, ErrorClass, Refusal, config::ConfigError};

/// An error of a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// What is wrong and what to do, as the commands say it.
    pub(super) detail: String,
    /// Seconds after which it may be worth another try.
    retry_after: Option<u32>,
    /// Further members.
    more: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry_after: None, more: Map::new() }
    }

    /// The request makes no sense.
    pub(super) fn usage(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The controller cannot do it now.
    pub(super) fn busy(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// With one more member.
    pub(super) fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// Whether nothing was done, and the same request may succeed soon.
    pub(super) fn is_passing(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// The refusal of a generation that was named in the header `If-Match`.
    pub(super) fn or_precondition(self, error: &Error) -> Self {
        match error {
            Error::Refused(Refusal::OtherGeneration { .. }) => Self { status: StatusCode::PRECONDITION_FAILED, ..self },
            _ => self,
        }
    }

    /// Seconds after which it may be worth another try.
    pub(super) fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    pub(super) fn json(&self) -> Value {
        let mut members = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut members {
            members.extend(self.more.clone());
        }
        members
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        let detail = chain(error);
        let (status, exit_code) = match (error, error.class()) {
            (Error::UnknownDeployment { .. }, _) => (StatusCode::NOT_FOUND, 2),
            (Error::Refused(Refusal::CommandsChange { .. }), _) => (StatusCode::FORBIDDEN, 3),
            (Error::Busy { .. }, _) => return Self::busy(detail).with("exit_code", 4.into()),
            (Error::NoInstance { .. }, _) => return Self::busy(detail).with("exit_code", 1.into()),
            (_, ErrorClass::Usage) => (StatusCode::BAD_REQUEST, 2),
            (_, ErrorClass::Refused) => (StatusCode::CONFLICT, 3),
            (_, ErrorClass::TimedOut) => (StatusCode::GATEWAY_TIMEOUT, 4),
            (_, ErrorClass::Failed) => (StatusCode::INTERNAL_SERVER_ERROR, 1),
        };
        Self::new(status, detail).with("exit_code", exit_code.into())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, chain(&error)).with("exit_code", 2.into())
    }
}

/// The error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Basic, with the token as password, is what browsers can ask for.
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"bgctl\", Basic realm=\"bgctl\""),
            );
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_status_of_its_exit_code() {
        let other = || Error::Refused(Refusal::OtherGeneration { deployment: "shop".into(), expected: 3, got: 4 });
        let unknown = Error::UnknownDeployment { name: "x".to_owned(), existing: Vec::new() };
        let busy = Error::Busy { path: "/x".into(), holder: "process 1".to_owned() };
        let late = Error::WindowOver { what: "a flow".to_owned() };
        let odd = Error::Unrepresentable { what: "no".to_owned() };
        for (error, status, code) in
            [(other(), 409, 3), (unknown, 404, 2), (busy, 503, 4), (late, 504, 4), (odd, 400, 2)]
        {
            let problem = Problem::from(&error);
            assert_eq!(
                (problem.status.as_u16(), problem.json()["exit_code"].as_u64()),
                (status, Some(code)),
                "{error}"
            );
            assert_eq!(problem.json()["status"], status);
            assert!(problem.json()["detail"].as_str().is_some_and(|detail| detail.contains(&error.to_string())));
        }
        assert_eq!(Problem::from(&other()).or_precondition(&other()).status, StatusCode::PRECONDITION_FAILED);
        let invalid = crate::config::parse("x.toml".as_ref(), "deployments = 1").unwrap_err();
        assert_eq!(Problem::from(invalid).status, StatusCode::UNPROCESSABLE_ENTITY);
    }
}
