//! Why this machine allows no private world, and what to do.

use std::{fs, io};

/// Why there is no private world.
#[derive(Debug, thiserror::Error)]
pub enum NoWorld {
    /// This machine gives none to whoever asks: nothing is known to be wrong with what was to be tested or shown in it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// This machine gives one, and it could not be made usable.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// One line that says why no private world could be made here, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// What failed on the way into a world that the machine does not refuse.
#[derive(Debug, thiserror::Error)]
#[error("{doing} failed: {source}")]
pub struct Failed {
    doing: String,
    source: io::Error,
}

impl Failed {
    pub(super) fn new(doing: &str, source: io::Error) -> Self {
        let doing = doing.to_owned();
        Self { doing, source }
    }
}

impl NoWorld {
    /// The kernel was asked for a namespace, a mount or a sysctl: it may refuse that.
    pub(super) fn at(step: &str, error: io::Error) -> Self {
        let is_refusal = match error.raw_os_error() {
            Some(errno) => REFUSALS.contains(&errno),
            None => error.kind() == io::ErrorKind::PermissionDenied,
        };
        Self::of(is_refusal, step, error)
    }

    /// The namespaces stand, and the kernel was asked through what is tested in them: it may lack a module, and all else is a
    /// failure of whoever asks.
    pub(super) fn asking(step: &str, error: io::Error) -> Self {
        let is_refusal = error.raw_os_error().is_some_and(|errno| NO_MODULE.contains(&errno));
        Self::of(is_refusal, step, error)
    }

    /// Where worlds are required nothing is refused.
    pub(super) fn held_to(self, required: bool) -> Self {
        match self {
            Self::Refused(Refused(why)) if required => {
                Failed::new("entering a world, which is required here,", io::Error::other(why)).into()
            }
            other => other,
        }
    }

    fn of(is_refusal: bool, step: &str, error: io::Error) -> Self {
        match is_refusal {
            true => Refused::at(step, &error).into(),
            false => Failed::new(step, error).into(),
        }
    }
}

/// What kernels and containers answer that give nobody, or not everybody, a namespace, a mount or a sysctl.
const REFUSALS: [i32; 9] = [
    libc::EPERM,
    libc::EACCES,
    libc::EROFS,
    libc::ENOSYS,
    libc::EINVAL,
    libc::ENOENT,
    libc::ENODEV,
    libc::ENOSPC,
    libc::EUSERS,
];
/// What kernels answer that lack a part of netlink.
const NO_MODULE: [i32; 3] = [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT];

impl Refused {
    /// The kernel maps uid 0 into a user namespace only for one who has CAP_SETFCAP (since 5.12).
    pub(super) fn powerless_root() -> Self {
        let why = "root without capabilities can neither make namespaces nor be root in a user namespace";
        Self(format!("{why}: run it as another user, or run the container with --privileged"))
    }

    /// A step that failed, with what the machine's settings say about it.
    fn at(step: &str, error: &io::Error) -> Self {
        Self(format!("{step} failed ({error}): {}", Settings::read().advice(error)))
    }
}

/// The settings that decide about namespaces; `None` where this kernel does not have one.
#[derive(Debug, Default, Clone, Copy)]
struct Settings {
    max_user_namespaces: Option<u64>,
    unprivileged_userns_clone: Option<u64>,
    apparmor_restricts: Option<u64>,
}

impl Settings {
    fn read() -> Self {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
        Self {
            max_user_namespaces: number("/proc/sys/user/max_user_namespaces"),
            unprivileged_userns_clone: number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restricts: number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    fn advice(self, error: &io::Error) -> &'static str {
        match error.raw_os_error() {
            Some(libc::EROFS) => "/proc/sys is read-only here, as in a container: run the container with --privileged, or outside of one",
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT) => {
                "the kernel lacks a module: `modprobe -a nf_tables nft_ct nft_redir nft_nat veth` as root"
            }
            Some(libc::EINVAL | libc::ENOSYS) => {
                "this kernel was built without the namespaces that it needs (CONFIG_USER_NS, CONFIG_NET_NS)"
            }
            _ if self.max_user_namespaces == Some(0) => {
                "user namespaces are switched off: `sysctl -w user.max_user_namespaces=10000` as root, or run it as root"
            }
            _ if self.unprivileged_userns_clone == Some(0) => {
                "user namespaces are for root only here: `sysctl -w kernel.unprivileged_userns_clone=1` as root, or run it as root"
            }
            _ if self.apparmor_restricts.is_some_and(|v| v != 0) => {
                "AppArmor takes the rights of user namespaces: `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` as root, or run it as root"
            }
            Some(libc::ENOSPC | libc::EUSERS) => {
                "a limit on namespaces is reached: raise user.max_user_namespaces, user.max_net_namespaces and user.max_mnt_namespaces"
            }
            _ => {
                "a container's seccomp profile or a chroot probably forbids it: run the container with --privileged, or outside of one, or as root"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_fits_the_cause() {
        let error = io::Error::from_raw_os_error;
        let open = Settings {
            max_user_namespaces: Some(100),
            unprivileged_userns_clone: Some(1),
            apparmor_restricts: Some(0),
        };
        for (settings, errno, says) in [
            (
                Settings {
                    max_user_namespaces: Some(0),
                    ..open
                },
                libc::ENOSPC,
                "user.max_user_namespaces=10000",
            ),
            (
                Settings {
                    unprivileged_userns_clone: Some(0),
                    ..open
                },
                libc::EPERM,
                "kernel.unprivileged_userns_clone=1",
            ),
            (
                Settings {
                    apparmor_restricts: Some(1),
                    ..open
                },
                libc::EPERM,
                "apparmor_restrict_unprivileged_userns=0",
            ),
            (
                Settings {
                    apparmor_restricts: Some(1),
                    ..open
                },
                libc::EACCES,
                "apparmor_restrict_unprivileged_userns=0",
            ),
            (open, libc::ENOSPC, "limit"),
            (open, libc::EROFS, "read-only"),
            (open, libc::EINVAL, "CONFIG_USER_NS"),
            (open, libc::EPERM, "seccomp"),
            (open, libc::EOPNOTSUPP, "modprobe"),
            (Settings::default(), libc::EPERM, "seccomp"),
        ] {
            let advice = settings.advice(&error(errno));
            assert!(advice.contains(says), "{settings:?} {errno}: {advice}");
        }
        let line = Refused::at("trying", &error(libc::EPERM)).to_string();
        assert!(line.starts_with("trying failed (") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_machine_refuses_namespaces_and_modules_and_all_else_has_failed() {
        let is_refused = |of: fn(&str, io::Error) -> NoWorld, errno| {
            let no_world = of("trying", io::Error::from_raw_os_error(errno));
            matches!(no_world, NoWorld::Refused(_))
        };
        for errno in REFUSALS {
            assert!(is_refused(NoWorld::at, errno), "{errno}");
            assert!(!is_refused(NoWorld::asking, errno), "{errno} of a netlink that may be wrong");
        }
        for errno in NO_MODULE {
            assert!(is_refused(NoWorld::asking, errno), "{errno}");
        }
        assert!(!is_refused(NoWorld::at, libc::EFAULT) && !is_refused(NoWorld::asking, libc::EBADMSG));
        // An answer that could not be read.
        let unread = || io::Error::new(io::ErrorKind::InvalidData, "unread");
        assert!(matches!(NoWorld::asking("trying", unread()), NoWorld::Failed(_)));
        let required = NoWorld::at("trying", io::Error::from_raw_os_error(libc::EPERM)).held_to(true);
        assert!(
            matches!(&required, NoWorld::Failed(failed) if failed.to_string().contains("required here")),
            "{required}"
        );
    }
}
