//! Stopping the node from a page.

use std::sync::Arc;

use http::StatusCode;
use tokio::sync::watch;

use super::{Answer, Asked, Site};

/// How soon the node is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// It goes on.
    #[default]
    None,
    /// What is open may go on until the drain's deadline.
    Graceful,
    /// What is open is reset now.
    Immediate,
}

/// The word that the node is to stop: given by anybody who holds it, and heard by all.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<watch::Sender<Urgency>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }
}

impl Stop {
    /// Tells it; never less urgently than before.
    pub(crate) fn tell(&self, urgency: Urgency) {
        self.0.send_if_modified(|now| {
            *now < urgency && {
                *now = urgency;
                true
            }
        });
    }

    /// Whether the node is to stop.
    pub(crate) fn is_told(&self) -> bool {
        *self.0.borrow() > Urgency::None
    }

    /// Waits until it is told at least so urgently. Cancel safe.
    pub(crate) async fn told(&self, urgency: Urgency) {
        // The sender is held here, so that this never fails.
        let _ = self.0.subscribe().wait_for(|now| *now >= urgency).await;
    }
}

/// `POST /quitquitquit`, and with `?immediate` without letting open connections end.
pub(super) fn quit<C: Site>(at: &C, asked: &Asked) -> Answer {
    let urgency = match asked.value("immediate") {
        Some("" | "true") => Urgency::Immediate,
        Some(other) if other != "false" => {
            return Answer::text(StatusCode::BAD_REQUEST, format!("immediate is true or false, and not {other:?}\n"));
        }
        _ => Urgency::Graceful,
    };
    tracing::info!(?urgency, "told to stop by the admin page");
    at.standing().stop.tell(urgency);
    Answer::text(StatusCode::OK, "shutdown now\n")
}
