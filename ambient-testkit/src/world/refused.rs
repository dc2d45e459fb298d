//! Why this machine allows no private world, and what to do.

use std::{fs, io};

/// One line that says why no private world could be made here, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    pub(crate) fn new(why: String) -> Self {
        Self(why)
    }

    /// The kernel maps uid 0 into a user namespace only for one who has CAP_SETFCAP (since 5.12).
    pub(crate) fn powerless_root() -> Self {
        let why = "root without capabilities can neither make namespaces nor be root in a user namespace";
        Self(format!("{why}: run it as another user, or run the container with --privileged"))
    }

    /// A step that failed, with what the machine's settings say about it.
    pub(crate) fn at(step: &str, error: &io::Error) -> Self {
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
}
