//! The loss of a device: told once, asked often, waited for.

use crate::gpu::trace::event;
use futures::channel::oneshot;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Why a device was lost, once it is, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Loss {
    reason: OnceLock<String>,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

impl Loss {
    /// The first reason stays.
    pub fn report(&self, reason: String) {
        if self.reason.set(reason).is_ok() {
            event!(ERROR, reason = self.reason(), "lost");
        }
        for waiting in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The receiver is gone only if nobody waits.
            let _ = waiting.send(());
        }
    }

    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Waits for it.
    pub async fn wait(self: Arc<Self>) -> String {
        loop {
            let told = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Under the lock: who reports drains the list afterwards.
                if let Some(reason) = self.reason() {
                    return reason.to_owned();
                }
                let (sender, told) = oneshot::channel();
                waiting.push(sender);
                told
            };
            // Only a report ends it, since the list is not dropped while it is waited for.
            let _ = told.await;
        }
    }
}
