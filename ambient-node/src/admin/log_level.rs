//! What is logged, read and changed while the node runs.

use http::{Method, StatusCode};

use super::{Answer, Asked, Site};
use crate::telemetry::log;

const HELP: &str = "GET tells what is logged.
POST ?level=LEVEL sets it for all: off, error, warn, info, debug or trace.
POST ?level=TARGET=LEVEL[,TARGET=LEVEL…] sets it for some: access (connections), ambient_hbone, …; TARGET:LEVEL is the same
POST ?reset, alone or with &level=…, takes back first what was set here.
";

/// `GET /logging` and `POST /logging?level=…`, additive as ztunnel's.
pub(super) fn logging<C: Site>(_: &C, asked: &Asked) -> Answer {
    let Some(levels) = log::levels() else {
        return Answer::text(
            StatusCode::NOT_IMPLEMENTED,
            "this process has set up a log of its own: ask that for its level\n",
        );
    };
    let told = || format!("current log level is {}\n", levels.present());
    if asked.method != Method::POST {
        return Answer::text(StatusCode::OK, told() + "\n" + HELP);
    }
    let wanted = asked.value("level").unwrap_or_default();
    match levels.change(asked.value("reset").is_some(), wanted) {
        Ok(()) => {
            if asked.value("level").is_some() || asked.value("reset").is_some() {
                tracing::info!(level = levels.present(), "the log's level was changed by the admin page");
            }
            Answer::text(StatusCode::OK, told())
        }
        Err(error) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n\n{HELP}")),
    }
}
