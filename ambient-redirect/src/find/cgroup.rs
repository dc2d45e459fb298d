//! `/proc/PID/cgroup`.

use ambient_core::PodUid;

/// The pod that a process belongs to, by the names of its control groups; `None` for what is no pod's.
///
/// A kubelet names the group of a pod `podUID` below a group `kubepods` (driver `cgroupfs`), or
/// `kubepods-CLASS-podUID.slice` with `_` for each `-` of the UID (driver `systemd`); containers' groups are below it, or
/// behind a colon. Of several the outermost counts: those further in may be of the pod's own making.
///
/// ```
/// let line = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f4b1c3a_0d51_4a5e_9a2b_6a7c8d9e0f10.slice/cri-containerd-ab.scope";
/// let uid = ambient_redirect::find::pod_of(line).unwrap();
/// assert_eq!(uid.as_str(), "2f4b1c3a-0d51-4a5e-9a2b-6a7c8d9e0f10");
/// ```
pub fn pod_of(cgroup: &str) -> Option<PodUid> {
    cgroup.lines().find_map(of_line)
}

/// Of a line `HIERARCHY:CONTROLLERS:PATH`.
fn of_line(line: &str) -> Option<PodUid> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut below = false;
    path.split('/').find_map(|group| {
        below |= group.contains("kubepods");
        below.then(|| of_group(group)).flatten()
    })
}

fn of_group(group: &str) -> Option<PodUid> {
    // What comes behind a colon is the container's.
    let group = group.split(':').next().unwrap_or_default();
    let uid = match group.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid)?,
        None => group.strip_prefix("pod")?,
    };
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let parts = uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_');
    // A UUID, or what a kubelet makes of a file of its own, which has no dashes.
    (parts && digits == DIGITS && uid.len() <= LONGEST).then(|| uid.replace('_', "-").to_ascii_lowercase().into())
}

const DIGITS: usize = 32;
const LONGEST: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f4b1c3a-0d51-4a5e-9a2b-6a7c8d9e0f10";
    const SLICE: &str = "2f4b1c3a_0d51_4a5e_9a2b_6a7c8d9e0f10";
    const OTHER: &str = "11111111-2222-3333-4444-555555555555";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn of(text: &str) -> Option<String> {
        let text = text
            .replace("UID", UID)
            .replace("SLICE", SLICE)
            .replace("OTHER", OTHER)
            .replace("HASH", HASH);
        pod_of(&text).map(|uid| uid.to_string())
    }

    #[test]
    fn as_kubelets_and_runtimes_name_them() {
        for line in [
            // cgroupfs, v1 and v2, with and without a class
            "11:memory:/kubepods/burstable/podUID/0af1",
            "4:cpu,cpuacct:/kubepods/besteffort/podUID/0af1",
            "0::/kubepods/podUID/0af1",
            "0::/kubepods/podUID",
            // systemd: containerd, CRI-O, Docker
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSLICE.slice/cri-containerd-0af1.scope",
            "0::/kubepods.slice/kubepods-podSLICE.slice/crio-0af1.scope",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSLICE.slice/crio-0af1.scope/container",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podSLICE.slice/docker-0af1.scope",
            "0::/kubepods.slice/kubepods-podSLICE.slice/crio-conmon-0af1.scope",
            // the runtime's own service, the container behind colons
            "1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-podSLICE.slice:cri-containerd:0af1",
            "0::/kubepods-burstable-podSLICE.slice:cri-containerd:0af1",
            // below another group, as in a node that is a container, or seen from below
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podSLICE.slice/cri-containerd-0af1.scope",
            "0::/docker/5e5e/kubelet/kubepods/besteffort/podUID/0af1",
            "0::/../../../kubepods-burstable.slice/kubepods-burstable-podSLICE.slice/cri-containerd-0af1.scope",
            // several lines, of which one says it
            "12:pids:/\n11:memory:/kubepods/burstable/podUID/0af1\n0::/",
            // in capitals
            "0::/kubepods/pod2F4B1C3A-0D51-4A5E-9A2B-6A7C8D9E0F10/0af1",
        ] {
            assert_eq!(of(line).as_deref(), Some(UID), "{line}");
        }
        assert_eq!(
            of("0::/kubepods/burstable/podHASH/0af1").as_deref(),
            Some(HASH),
            "of a file of the kubelet's"
        );
        assert_eq!(
            of("0::/kubepods.slice/kubepods-podHASH.slice/crio-0af1.scope").as_deref(),
            Some(HASH)
        );
    }

    #[test]
    fn what_a_pod_makes_below_its_own_group_does_not_count() {
        for line in [
            "0::/kubepods/burstable/podUID/0af1/kubepods/podOTHER/x",
            "0::/kubepods.slice/kubepods-podSLICE.slice/cri-containerd-0af1.scope/podOTHER",
        ] {
            assert_eq!(of(line).as_deref(), Some(UID), "{line}");
        }
    }

    #[test]
    fn what_is_no_pods() {
        for line in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/system.slice/kubelet.service",
            "0::/system.slice/crio-0af1.scope",
            "0::/user.slice/podUID",
            "0::/podUID/0af1",
            "0::/kubepods/burstable",
            "0::/kubepods/podinfo/0af1",
            "0::/kubepods/pod/0af1",
            "0::/kubepods/pod2f4b1c3a/0af1",
            "0::/kubepods/podUIDab/0af1",
            "0::/kubepods/pod2f4b1c3a+0d51+4a5e+9a2b+6a7c8d9e0f10/0af1",
            "no colons at all /kubepods/podUID",
            "0:/kubepods/podUID",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_there(text in "[ -~\n]{0,200}") {
            let _ = pod_of(&text);
        }

        #[test]
        fn a_uid_is_found_in_any_class_and_container(uid in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", class in "[a-z]{1,12}", container in "[a-z0-9-]{1,70}") {
            let plain = format!("0::/kubepods/{class}/pod{uid}/{container}");
            let slice = format!("0::/kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{}.slice/{container}.scope", uid.replace('-', "_"));
            for line in [plain, slice] {
                let found = pod_of(&line);
                proptest::prop_assert_eq!(found.as_ref().map(PodUid::as_str), Some(uid.as_str()));
            }
        }
    }
}
