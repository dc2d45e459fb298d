//! What is wrong with a file of PEM, in words.

use rustls_pki_types::pem::Error;

/// Says why PEM cannot be read; the reader's own words are lists of bytes.
pub fn pem_in_words(error: &Error) -> String {
    let quoted = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().chars().take(LINE).collect::<String>();
    match error {
        Error::MissingSectionEnd { end_marker } => format!("it ends before the line {:?}", format!("-----END {}-----", quoted(end_marker))),
        Error::IllegalSectionStart { line } => format!("a section begins with {:?}", quoted(line)),
        Error::NoItemsFound => "it holds nothing of that kind".into(),
        other => other.to_string(),
    }
}

/// What is shown of a line.
const LINE: usize = 64;
