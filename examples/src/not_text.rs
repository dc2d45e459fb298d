//! Bytes where text is wanted: the parser says that there are some, and not where.

use std::ffi::OsString;

use clap::{Command, error::ErrorKind};

/// Where they are, if that is what is wrong with arguments or with the environment of a command.
pub(crate) fn told(error: &clap::Error, command: &Command, arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let flag = arguments.iter().find(|argument| argument.to_str().is_none());
    let place = match flag {
        Some(argument) => format!("the argument {:?}", argument.to_string_lossy()),
        None => {
            let mut named = command.get_arguments().filter_map(|arg| arg.get_env());
            let is_bytes = |name: &&std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.to_str().is_none());
            format!("the environment variable {}", named.find(is_bytes)?.to_string_lossy())
        }
    };
    Some(format!("{place}: it holds bytes that are no UTF-8, and text is wanted"))
}
