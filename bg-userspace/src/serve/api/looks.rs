//! Looks at the instance that several requests share.
//!
//! An answer must not be older than the request: whoever has just switched would see the old colour. So a request takes the result of
//! a look that began after it has come, and those that wait for one meanwhile all take the same.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::{sync::Mutex, time::Instant};

use crate::{Error, Status, serve::controller::Controller};

/// What a look has seen.
#[derive(Debug)]
pub(super) struct Look {
    began: Instant,
    pub(super) at: jiff::Timestamp,
    pub(super) status: Status,
    /// The same as JSON.
    pub(super) json: Bytes,
}

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Option<Arc<Look>>>);

impl Looks {
    /// A look that begins now or later.
    pub(super) async fn fresh(&self, controller: &Arc<Controller>) -> Result<Arc<Look>, Error> {
        let moment = Instant::now();
        let mut last = self.0.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.began >= moment) {
            return Ok(look.clone());
        }
        let began = Instant::now();
        let look = controller.on_instance(None, move |instance| {
            let status = instance.status(None)?;
            let json = serde_json::to_vec(&status).expect("a status can be JSON").into();
            Ok(Look { began, at: jiff::Timestamp::now(), status, json })
        });
        Ok(last.insert(Arc::new(look.await?)).clone())
    }
}
