//! What a pod asks of its own capture, by annotations.

use std::{fmt, str::FromStr, sync::Arc};

/// What a pod asks of its capture that differs from its node's settings: Istio's annotations, which are followed while the
/// pod runs.
///
/// ```
/// use ambient_core::Capture;
///
/// let annotations = [("ambient.istio.io/dns-capture", "F"), ("istio.io/reroute-virtual-interfaces", "tap0, a/b")];
/// let capture = Capture::read(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value));
/// assert_eq!(capture.dns, Some(false));
/// assert_eq!(capture.virtual_interfaces[0].as_str(), "tap0");
/// assert!(capture.faults[0].to_string().contains("a/b"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// What comes to the pod goes to its application as it is, except by HBONE: a gateway that takes the world's traffic
    /// itself (`ambient.istio.io/bypass-inbound-capture`).
    pub bypass_inbound: bool,
    /// Whether its DNS queries are captured; `None` where its node says (`ambient.istio.io/dns-capture`).
    pub dns: Option<bool>,
    /// What comes by TCP from these devices is sent by a machine inside the pod, and is captured as if the pod had sent
    /// it (`istio.io/reroute-virtual-interfaces`).
    pub virtual_interfaces: Vec<InterfaceName>,
    /// What stands in these annotations and is not followed.
    pub faults: Vec<CaptureFault>,
}

/// A value in an annotation that is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {annotation} has {value:?}, which is not followed: {why}")]
pub struct CaptureFault {
    /// The annotation.
    pub annotation: &'static str,
    /// The value.
    pub value: Arc<str>,
    /// What is wrong with it, and what is wanted.
    pub why: String,
}

/// The name of a network device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName {
    bytes: [u8; LONGEST + 1],
    length: u8,
}

/// A text that is no name of a device whose traffic could be rerouted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    /// It is empty, or too long for the kernel.
    #[error("a device's name has 1 to {LONGEST} characters")]
    Length,
    /// It has a character that a name cannot have, or that other tools take for a pattern.
    #[error("a device's name has letters, digits and any of -_.@ only, and is neither . nor ..")]
    Character,
    /// It is the loopback device.
    #[error("the proxy itself reaches the application by the loopback device")]
    Loopback,
}

impl Capture {
    /// Reads what annotations say; `annotation` gives the value of one.
    ///
    /// Values of truth are Go's, as Istio reads them: `1`, `t`, `T`, `true`, `TRUE`, `True` and their opposites. One that is
    /// none of them is a fault and changes nothing, as is a device's name that cannot be one; the other names hold.
    pub fn read<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Self {
        let mut capture = Self::default();
        let mut truth = |key: &'static str| {
            let value = annotation(key)?;
            let read = parse_bool(value);
            if read.is_none() {
                capture.faults.push(CaptureFault::new(key, value, "true or false is wanted"));
            }
            read
        };
        let bypass = truth(BYPASS_INBOUND).unwrap_or(false);
        let dns = truth(DNS);
        (capture.bypass_inbound, capture.dns) = (bypass, dns);
        for name in annotation(INTERFACES).into_iter().flat_map(|list| list.split(',')).map(str::trim) {
            match name.parse::<InterfaceName>() {
                Ok(name) if capture.virtual_interfaces.contains(&name) => {}
                Ok(name) if capture.virtual_interfaces.len() < MOST_INTERFACES => capture.virtual_interfaces.push(name),
                Ok(_) => {
                    let why = format!("{MOST_INTERFACES} devices are followed at most");
                    capture.faults.push(CaptureFault::new(INTERFACES, name, why));
                    break;
                }
                // A comma too many says nothing.
                Err(_) if name.is_empty() => {}
                Err(_) if capture.faults.len() >= MOST_FAULTS => break,
                Err(e) => capture.faults.push(CaptureFault::new(INTERFACES, name, e.to_string())),
            }
        }
        capture
    }

    /// Takes back that DNS queries are to be captured, where they cannot be, and says why.
    pub fn refuse_dns(&mut self, why: &str) {
        if self.dns == Some(true) {
            self.dns = None;
            self.faults.push(CaptureFault::new(DNS, "true", why));
        }
    }

    /// Whether nothing is asked, and nothing is wrong.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl CaptureFault {
    fn new(annotation: &'static str, value: &str, why: impl Into<String>) -> Self {
        let value = value.chars().take(MOST_TOLD).collect::<String>().into();
        let why = why.into();
        Self { annotation, value, why }
    }
}

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        // It was made of a text of such a length.
        self.bytes
            .get(..usize::from(self.length))
            .and_then(|name| std::str::from_utf8(name).ok())
            .unwrap_or_default()
    }

    /// The name as the kernel compares it: filled up with zeros.
    pub fn padded(&self) -> [u8; LONGEST + 1] {
        self.bytes
    }
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() || name.len() > LONGEST {
            return Err(InterfaceNameError::Length);
        }
        if matches!(name, "." | "..") || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b)) {
            return Err(InterfaceNameError::Character);
        }
        if name == "lo" {
            return Err(InterfaceNameError::Loopback);
        }
        let mut bytes = [0; LONGEST + 1];
        bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Ok(Self {
            bytes,
            length: name.len() as u8,
        })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What Go's `strconv.ParseBool` takes, by which Istio reads annotations.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
const DNS: &str = "ambient.istio.io/dns-capture";
const INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

/// The longest name of a device (`IFNAMSIZ` is one more).
const LONGEST: usize = 15;
/// Devices of one pod that are rerouted: each is a rule.
const MOST_INTERFACES: usize = 32;
/// What is told of one pod's annotations, and of one value.
const MOST_FAULTS: usize = 16;
const MOST_TOLD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> Capture {
        Capture::read(|key| annotations.iter().find(|(k, _)| *k == key).map(|(_, value)| *value))
    }

    #[test]
    fn truth_is_what_go_takes_for_it() {
        for (text, wanted) in [
            ("1", Some(true)),
            ("t", Some(true)),
            ("T", Some(true)),
            ("true", Some(true)),
            ("TRUE", Some(true)),
            ("True", Some(true)),
            ("0", Some(false)),
            ("f", Some(false)),
            ("F", Some(false)),
            ("false", Some(false)),
            ("FALSE", Some(false)),
            ("False", Some(false)),
            ("", None),
            ("yes", None),
            ("tRUE", None),
            (" true", None),
        ] {
            let capture = read(&[(DNS, text)]);
            assert_eq!(capture.dns, wanted, "{text:?}");
            assert_eq!(capture.faults.len(), usize::from(wanted.is_none()), "{text:?}");
            let capture = read(&[(BYPASS_INBOUND, text)]);
            assert_eq!(capture.bypass_inbound, wanted == Some(true), "{text:?}");
        }
        assert!(read(&[]).is_default());
    }

    #[test]
    fn devices_are_named_or_refused_one_by_one() {
        let capture = read(&[(INTERFACES, "tap0,,  br-1.2 ,tap0, lo, a b, ..,veth@x,0123456789abcdef,tap*,ü")]);
        let names: Vec<&str> = capture.virtual_interfaces.iter().map(InterfaceName::as_str).collect();
        assert_eq!(names, ["tap0", "br-1.2", "veth@x"]);
        let refused: Vec<&str> = capture.faults.iter().map(|f| &*f.value).collect();
        assert_eq!(refused, ["lo", "a b", "..", "0123456789abcdef", "tap*", "ü"]);
        let told = capture.faults[0].to_string();
        assert!(told.contains(INTERFACES) && told.contains("loopback"), "{told}");
    }

    #[test]
    fn what_an_annotation_can_cause_has_a_bound() {
        let many: String = (0..10_000).map(|n| format!("tap{n},")).collect();
        let capture = read(&[(INTERFACES, &many)]);
        assert_eq!(capture.virtual_interfaces.len(), MOST_INTERFACES);
        assert_eq!(capture.faults.len(), 1);
        let bad = "/,".repeat(10_000);
        assert_eq!(read(&[(INTERFACES, &bad)]).faults.len(), MOST_FAULTS);
        let long = "/".repeat(10_000);
        assert_eq!(read(&[(INTERFACES, &long)]).faults[0].value.len(), MOST_TOLD);
    }
}
