//! Lines as ztunnel writes them, so that whoever reads its log reads this one.
//!
//! Text: `TIME<TAB>level<TAB>TARGET<TAB>MESSAGE<TAB>KEY=VALUE …`, texts in quotes. JSON: one flat object a line.

use std::{
    fmt::{self, Write as _},
    time::SystemTime,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use super::Format;
use crate::{clock, text::rfc3339};

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Format {
    fn format_event(&self, _: &FmtContext<'_, S, N>, to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let now = time(clock::wall());
        let (level, target) = (word(*metadata.level()), metadata.target());
        match self {
            Self::Text => text(to, event, format_args!("{now}\t{level}\t{target}\t")),
            Self::Json => json(to, event, &now, level, target),
        }
    }
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// RFC 3339 to the microsecond.
fn time(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = rfc3339(since.as_secs());
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), since.subsec_micros())
}

fn text(mut to: Writer<'_>, event: &Event<'_>, head: fmt::Arguments<'_>) -> fmt::Result {
    let mut fields = TextFields {
        message: String::new(),
        rest: String::with_capacity(USUAL),
    };
    event.record(&mut fields);
    write!(to, "{head}{}", fields.message)?;
    if !fields.rest.is_empty() {
        write!(to, "\t{}", fields.rest)?;
    }
    writeln!(to)
}

/// As much as the fields of a line of the access log take, or a little more.
const USUAL: usize = 1024;

struct TextFields {
    message: String,
    rest: String,
}

impl TextFields {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // A text never fails to be written to.
        let _ = match field.name() {
            // One event is one line and has its columns, and moves no terminal, whatever its texts hold.
            "message" => OneLine(&mut self.message).write_fmt(value),
            name => {
                let blank = if self.rest.is_empty() { "" } else { " " };
                let named = write!(self.rest, "{blank}{name}=");
                named.and_then(|()| OneLine(&mut self.rest).write_fmt(value))
            }
        };
    }
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put(field, format_args!("{value}")),
            _ => self.put(field, format_args!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

struct OneLine<'a>(&'a mut String);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Nearly all that is written, and much faster than one character after the other.
        if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            self.0.push_str(text);
            return Ok(());
        }
        for character in text.chars() {
            match character.is_control() {
                true => self.0.extend(character.escape_debug()),
                false => self.0.push(character),
            }
        }
        Ok(())
    }
}

fn json(mut to: Writer<'_>, event: &Event<'_>, now: &str, level: &str, target: &str) -> fmt::Result {
    let mut fields = JsonFields(String::new());
    event.record(&mut fields);
    let target = quoted(target);
    writeln!(to, "{{\"level\":\"{level}\",\"time\":\"{now}\",\"scope\":{target}{}}}", fields.0)
}

/// As a text of JSON.
fn quoted(text: &str) -> String {
    // A text cannot fail to be one of JSON.
    serde_json::to_string(text).unwrap_or_default()
}

struct JsonFields(String);

impl JsonFields {
    fn put(&mut self, field: &Field, value: impl fmt::Display) {
        // A text never fails to be written to.
        let _ = write!(self.0, ",{}:{value}", quoted(field.name()));
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        match value.is_finite() {
            true => self.put(field, value),
            false => self.put(field, "null"),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, quoted(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, quoted(&value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, quoted(&format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::kept, *};

    fn logged(format: Format) -> String {
        kept::logged(format, || {
            tracing::event!(
                target: "access",
                Level::INFO,
                src.addr = %"10.0.0.1:1",
                src.workload = Some("cart"),
                dst.workload = None::<&str>,
                bytes_sent = 12_u64,
                waypoint = false,
                duration = "3ms",
                error = "closed: \"a\" = b\nc",
                "connection complete"
            );
        })
    }

    #[test]
    fn a_text_line_is_ztunnels() {
        let line = logged(Format::Text);
        let (time, rest) = line.split_once('\t').unwrap();
        assert!(time.len() == "2026-11-23T20:00:00.000001Z".len() && time.ends_with('Z'), "{time}");
        assert_eq!(
            rest,
            "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:1 src.workload=\"cart\" bytes_sent=12 waypoint=false \
             duration=\"3ms\" error=\"closed: \\\"a\\\" = b\\nc\"\n"
        );
    }

    #[test]
    fn what_others_have_written_is_no_more_than_text() {
        let mut told = String::new();
        OneLine(&mut told).write_str("a\tb\u{1b}[2J\r\n\u{9b}\u{7f} ä").unwrap();
        assert_eq!(told, r"a\tb\u{1b}[2J\r\n\u{9b}\u{7f} ä");
        for character in '\0'..='\u{ff}' {
            let mut told = String::new();
            OneLine(&mut told).write_str(&format!("a{character}b")).unwrap();
            let kept = told == format!("a{character}b");
            assert!(kept != character.is_control() && !told.contains(char::is_control), "{told:?}");
        }
    }

    #[test]
    fn a_json_line_is_one_flat_object() {
        let line = logged(Format::Json);
        assert_eq!(line.matches('\n').count(), 1);
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        for (key, value) in [
            ("level", "info".into()),
            ("scope", "access".into()),
            ("message", "connection complete".into()),
            ("src.addr", "10.0.0.1:1".into()),
            ("src.workload", "cart".into()),
            ("bytes_sent", 12.into()),
            ("waypoint", serde_json::Value::from(false)),
            ("duration", "3ms".into()),
            ("error", "closed: \"a\" = b\nc".into()),
        ] {
            assert_eq!(object[key], value, "{key}");
        }
        assert!(object["time"].as_str().unwrap().ends_with('Z') && object.get("dst.workload").is_none());
    }
}
