//! Webhooks: events are posted as JSON, in order, and again until somebody has taken them.
//!
//! Each webhook has its own queue and its own task, so that a slow receiver delays neither another one nor anything else. What was
//! recorded while no controller ran is not told.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{Client, StatusCode, Url, header::CONTENT_TYPE};
use serde::{Serialize, Serializer};
use tokio::{
    sync::{Notify as Bell, broadcast::error::RecvError},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{controller::Controller, error::ServeError, event::Event};
use crate::{config::model::Notify, http_client::http_client};

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pauses between two tries: the first one, doubled each time up to the last one.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(60);
/// How many events wait for a receiver. Of more, the oldest are dropped.
const MOST: usize = 1000;
/// How long the end of the controller waits for events that are about to be told.
const LAST: Duration = Duration::from_secs(2);

/// Tells webhooks until the controller ends.
pub(super) async fn run(controller: Arc<Controller>) -> Result<(), ServeError> {
    let mut configs = controller.config_changes();
    let mut events = None;
    let mut hooks: Vec<(Arc<Hook>, AbortHandle)> = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = configs.borrow_and_update().notify.clone();
        // One that stays keeps what waits in its queue. One that is gone is told nothing more.
        hooks.retain(|(hook, task)| {
            let stays = wanted.contains(&hook.notify);
            if !stays {
                task.abort();
            }
            stays
        });
        for notify in wanted {
            if !hooks.iter().any(|(hook, _)| hook.notify == notify) {
                let hook = Arc::new(Hook::new(notify));
                let task = tasks.spawn(hook.clone().run());
                hooks.push((hook, task));
            }
        }
        // Without a webhook, nothing has to be kept for one.
        events = if hooks.is_empty() { None } else { events.or_else(|| Some(controller.events())) };
        loop {
            let event = async {
                match &mut events {
                    Some(events) => events.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = event => match event {
                    Ok(event) => hooks.iter().for_each(|(hook, _)| hook.push(&event)),
                    Err(RecvError::Lagged(missed)) => tracing::warn!("{missed} events were not told to webhooks"),
                    Err(RecvError::Closed) => return Ok(()),
                },
                Some(_) = tasks.join_next() => {}
                _ = configs.changed() => break,
                () = controller.stopped() => {
                    hooks.iter().for_each(|(hook, _)| hook.close());
                    let _ = timeout(LAST, async { while tasks.join_next().await.is_some() {} }).await;
                    return Ok(());
                }
            }
        }
    }
}

/// A webhook and what it is to be told.
struct Hook {
    notify: Notify,
    /// Scheme, host and port of its URL, for the log. The rest of it is often a secret.
    origin: String,
    queue: Mutex<Queue>,
    bell: Bell,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Message>,
    is_closed: bool,
}

/// What is posted.
#[derive(Clone, Serialize)]
struct Message {
    /// The same at each try, so that a receiver can tell a repetition.
    id: String,
    host: String,
    #[serde(flatten, serialize_with = "shared")]
    event: Arc<Event>,
}

/// What to do after a try.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It was taken.
    Done,
    /// It will never be taken.
    GiveUp(String),
    /// It may be taken later.
    Again(String),
}

impl Hook {
    fn new(notify: Notify) -> Self {
        let origin = Url::parse(&notify.url).map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        Self { notify, origin, queue: Mutex::default(), bell: Bell::new() }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event if the webhook wants it.
    fn push(&self, event: &Arc<Event>) {
        if !self.notify.events.iter().any(|wanted| wanted.name() == event.name()) {
            return;
        }
        let id = format!("{:032x}", u128::from_ne_bytes(random()));
        let message = Message { id, host: host(), event: event.clone() };
        let mut queue = self.queue();
        if queue.waiting.len() >= MOST {
            queue.waiting.pop_front();
            tracing::warn!(webhook = self.origin, "a webhook has not taken {MOST} events; the oldest one is dropped");
        }
        queue.waiting.push_back(message);
        self.bell.notify_one();
    }

    /// No event will follow.
    fn close(&self) {
        self.queue().is_closed = true;
        self.bell.notify_one();
    }

    /// Tells events until it is closed and its queue is empty.
    async fn run(self: Arc<Self>) {
        let mut pause = *PAUSES.start();
        let mut client = None;
        loop {
            let (first, is_closed) = {
                let queue = self.queue();
                (queue.waiting.front().cloned(), queue.is_closed)
            };
            let Some(message) = first else {
                if is_closed {
                    return;
                }
                self.bell.notified().await;
                continue;
            };
            let webhook = &self.origin;
            match self.tell(&mut client, &message).await {
                Next::Again(why) => {
                    tracing::warn!(
                        webhook,
                        event = message.event.name(),
                        "a webhook was not told, and will be again in {pause:?}: {why}"
                    );
                    sleep(pause).await;
                    pause = (2 * pause).min(*PAUSES.end());
                    continue;
                }
                Next::GiveUp(why) => {
                    tracing::error!(webhook, event = message.event.name(), "a webhook refuses an event: {why}");
                }
                Next::Done => tracing::debug!(webhook, event = message.event.name(), "a webhook was told"),
            }
            pause = *PAUSES.start();
            let mut queue = self.queue();
            // It may have been dropped meanwhile.
            if queue.waiting.front().is_some_and(|first| first.id == message.id) {
                queue.waiting.pop_front();
            }
        }
    }

    async fn tell(&self, client: &mut Option<Client>, message: &Message) -> Next {
        let client = match client {
            Some(client) => client,
            None => match http_client(&self.notify.url, PATIENCE) {
                Ok(made) => client.insert(made),
                Err(error) => return Next::Again(format!("{:#}", anyhow::Error::from(error))),
            },
        };
        let body = match serde_json::to_vec(message) {
            Ok(body) => body,
            Err(error) => return Next::GiveUp(error.to_string()),
        };
        let request = client.post(&self.notify.url).header(CONTENT_TYPE, "application/json").body(body);
        match request.send().await {
            Ok(response) => next(response.status()),
            Err(error) => Next::Again(format!("{:#}", anyhow::Error::from(error.without_url()))),
        }
    }
}

fn shared<S: Serializer>(event: &Arc<Event>, serializer: S) -> Result<S::Ok, S::Error> {
    event.as_ref().serialize(serializer)
}

/// What an answer means.
fn next(status: StatusCode) -> Next {
    match status {
        status if status.is_success() => Next::Done,
        // These say that the same request may succeed later.
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Next::Again(status.to_string())
        }
        status if status.is_client_error() || status.is_redirection() => Next::GiveUp(status.to_string()),
        status => Next::Again(status.to_string()),
    }
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Without it, ids are equal, which only makes repetitions harder to tell.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    bytes
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_will_never_be_taken_does_not_hold_up_the_rest() {
        let of = |status| next(StatusCode::from_u16(status).unwrap());
        for status in [200, 202, 204] {
            assert_eq!(of(status), Next::Done);
        }
        for status in [408, 429, 500, 502, 503] {
            assert!(matches!(of(status), Next::Again(_)), "{status}");
        }
        for status in [301, 302, 400, 401, 404, 410, 413] {
            assert!(matches!(of(status), Next::GiveUp(_)), "{status}");
        }
    }
}
