//! Requests that are sent twice: the header `Idempotency-Key`.
//!
//! A client that has not heard the answer to a change cannot know whether it was made. It sends the same request with the same key again,
//! and gets the answer of the first one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header, header::HeaderName},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{problem::Problem, role::Identity};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(600);
/// How many answers are kept. The oldest make room.
const MOST: usize = 1024;
/// How much of them.
const MOST_BYTES: usize = 16 << 20;

/// An answer that can be given again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    /// The generation after it, if it has one.
    generation: Option<u64>,
    retry_after: Option<u32>,
    body: Bytes,
}

impl Answer {
    fn of(done: &Result<Value, Problem>) -> Self {
        match done {
            Ok(json) => Self::new(StatusCode::OK, "application/json", json),
            Err(problem) => {
                let retry_after = problem.retry_after();
                Self { retry_after, ..Self::new(problem.status, "application/problem+json", &problem.json()) }
            }
        }
    }

    fn new(status: StatusCode, content_type: &'static str, json: &Value) -> Self {
        let generation = json["to"]["generation"].as_u64().or_else(|| json["generation"].as_u64());
        Self { status, content_type, generation, retry_after: None, body: json.to_string().into() }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        let generation = self.generation.and_then(|generation| format!("\"{generation}\"").parse().ok());
        generation.map(|etag| headers.insert(header::ETAG, etag));
        self.retry_after.map(|seconds| headers.insert(header::RETRY_AFTER, seconds.into()));
        response
    }
}

/// The requests with a key.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Key, Entry>>);

/// The sender and its key, hashed.
type Key = [u8; 32];

#[derive(Debug)]
struct Entry {
    /// What was asked for, hashed.
    request: [u8; 32],
    /// When it was answered, or before that when it began.
    kept_since: Instant,
    /// `None` while it is being done.
    answer: Option<Answer>,
}

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Repeat {
    /// It is the first.
    First(Ticket),
    /// This was the answer.
    Again(Answer),
}

/// The place for the answer. Without one, the request counts as not done.
#[derive(Debug)]
pub(super) struct Ticket {
    repeats: Arc<Repeats>,
    /// `None` if the request has no key: its answer is not kept.
    key: Option<Key>,
}

impl Repeats {
    /// Begins a request. `request` is what makes two requests the same. One without a key is always the first.
    pub(super) fn begin(
        self: &Arc<Self>,
        identity: &Identity,
        headers: &HeaderMap,
        request: &[&[u8]],
    ) -> Result<Repeat, Problem> {
        let Some(key) = headers.get(KEY) else {
            return Ok(Repeat::First(Ticket { repeats: self.clone(), key: None }));
        };
        let who = format!("{} {}", identity.who.uid, identity.who);
        self.begin_with(&who, key.as_bytes(), request)
    }

    fn begin_with(self: &Arc<Self>, who: &str, key: &[u8], request: &[&[u8]]) -> Result<Repeat, Problem> {
        if key.is_empty() || key.len() > 255 {
            return Err(Problem::usage("the header Idempotency-Key takes 1 to 255 characters"));
        }
        let key = hash(&[who.as_bytes(), key]);
        let request = hash(request);
        let now = Instant::now();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| entry.answer.is_none() || now.duration_since(entry.kept_since) < KEPT);
        if let Some(entry) = entries.get(&key) {
            return match &entry.answer {
                _ if entry.request != request => Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "another request had this Idempotency-Key: a key is for one request and its repetitions",
                )),
                Some(answer) => Ok(Repeat::Again(answer.clone())),
                None => Err(Problem::new(StatusCode::CONFLICT, "the request with this Idempotency-Key is being done")),
            };
        }
        make_room(&mut entries);
        entries.insert(key, Entry { request, kept_since: now, answer: None });
        Ok(Repeat::First(Ticket { repeats: self.clone(), key: Some(key) }))
    }
}

impl Ticket {
    /// The answer. It is kept, unless nothing was done and the same request may succeed soon.
    pub(super) fn answer(mut self, done: &Result<Value, Problem>) -> Answer {
        let answer = Answer::of(done);
        if done.as_ref().is_err_and(Problem::is_passing) {
            return answer;
        }
        let mut entries = self.repeats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.key.take().and_then(|key| entries.get_mut(&key)) {
            // It is kept for as long as it is told, also if it took longer than that to make.
            (entry.answer, entry.kept_since) = (Some(answer.clone()), Instant::now());
        }
        answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.repeats.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }
    }
}

/// Removes the oldest answers until there is room for one more.
fn make_room(entries: &mut HashMap<Key, Entry>) {
    let size = |entry: &Entry| entry.answer.as_ref().map_or(0, |answer| answer.body.len());
    while entries.len() >= MOST || entries.values().map(size).sum::<usize>() > MOST_BYTES {
        let answered = entries.iter().filter(|(_, entry)| entry.answer.is_some());
        let Some(oldest) = answered.min_by_key(|(_, entry)| entry.kept_since).map(|(key, _)| *key) else { return };
        entries.remove(&oldest);
    }
}

/// Of all of it, with the lengths, so that nothing moves from one part to the next.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(text: &str) -> Result<Value, Problem> {
        Ok(text.into())
    }

    fn first(repeats: &Arc<Repeats>, who: &str, key: &str) -> Ticket {
        match repeats.begin_with(who, key.as_bytes(), &[b"switch"]) {
            Ok(Repeat::First(ticket)) => ticket,
            other => panic!("{who} {key}: {other:?}"),
        }
    }

    #[test]
    fn a_repetition_gets_the_first_answer_and_another_request_is_refused() {
        let repeats = Arc::new(Repeats::default());
        let ticket = first(&repeats, "ci", "1");
        assert_eq!(repeats.begin_with("ci", b"1", &[b"switch"]).unwrap_err().status, StatusCode::CONFLICT);
        let answer = ticket.answer(&done("done"));
        assert!(matches!(repeats.begin_with("ci", b"1", &[b"switch"]), Ok(Repeat::Again(again)) if again == answer));
        let other = repeats.begin_with("ci", b"1", &[b"rollback"]).unwrap_err();
        assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
        drop((first(&repeats, "ci", "2"), first(&repeats, "eve", "1")));
        // It was not answered, so it is not done.
        let ticket = first(&repeats, "ci", "2");
        ticket.answer(&Err(Problem::busy("too much is going on")));
        first(&repeats, "ci", "2");
        assert!(repeats.begin_with("ci", b"", &[]).is_err() && repeats.begin_with("ci", &[b'x'; 256], &[]).is_err());
    }

    #[test]
    fn the_oldest_answers_make_room() {
        let repeats = Arc::new(Repeats::default());
        let pending = first(&repeats, "ci", "pending");
        for key in 0..2 * MOST {
            first(&repeats, "ci", &key.to_string()).answer(&done("done"));
        }
        assert_eq!(repeats.0.lock().unwrap().len(), MOST);
        assert!(repeats.begin_with("ci", b"pending", &[b"switch"]).is_err(), "what is being done stays");
        drop(pending);
        first(&repeats, "ci", "0");
        assert!(matches!(
            repeats.begin_with("ci", (2 * MOST - 1).to_string().as_bytes(), &[b"switch"]),
            Ok(Repeat::Again(_))
        ));
    }
}
