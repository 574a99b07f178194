//! The loss of a device: reported once, looked up often, and awaited.

use crate::gpu::trace::event;
use futures::channel::oneshot;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Why a device was lost, once it is, and the tasks that wait for it.
#[derive(Debug, Default)]
pub(super) struct Loss {
    reason: OnceLock<String>,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

impl Loss {
    /// Records the loss. The first reason stays.
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

    /// Waits for the loss, and returns its reason.
    pub async fn wait(self: Arc<Self>) -> String {
        loop {
            let told = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                // Checked under the lock, since the reporter drains the list after it has set the
                // reason.
                if let Some(reason) = self.reason() {
                    return reason.to_owned();
                }
                let (sender, told) = oneshot::channel();
                waiting.push(sender);
                told
            };
            // Only a report ends the wait, since the list is not dropped while it lasts.
            let _ = told.await;
        }
    }
}
