//! Which page is where.

use http::StatusCode;

use super::{Answer, Asked, Context, Route, Takes, dump, explain, log_level, pods, probes, stop};

/// The admin pages, on the node's loopback. A new one gets a line here.
pub(super) const ADMIN: &[Route] = &[
    Route {
        path: "/",
        takes: Takes::Get,
        about: "this list",
        answer: index,
    },
    Route {
        path: "/config_dump",
        takes: Takes::Get,
        about: "workloads, services, policies, certificates and connections, as istioctl ztunnel-config reads them",
        answer: dump::whole,
    },
    Route {
        path: "/explain",
        takes: Takes::Get,
        about: "?from=NAMESPACE/POD&to=ADDRESS:PORT: the way of a connection, its identities, and what policy says",
        answer: explain::explained,
    },
    Route {
        path: "/pods",
        takes: Takes::Get,
        about: "how each pod of the node stands; ?pod=[NAMESPACE/]NAME: all of one, and what is wrong with it",
        answer: pods::all,
    },
    Route {
        path: "/logging",
        takes: Takes::Both,
        about: "what is logged; POST ?level=LEVEL or ?level=TARGET=LEVEL[,…] changes it, &reset begins from the start's",
        answer: log_level::logging,
    },
    Route {
        path: "/quitquitquit",
        takes: Takes::Post,
        about: "stop: new connections go to a successor or are refused, open ones have the drain's time; ?immediate resets them",
        answer: stop::quit,
    },
    Route {
        path: "/debug/pprof/profile",
        takes: Takes::Get,
        about: "not built in: see its answer",
        answer: no_profiles,
    },
    Route {
        path: "/debug/pprof/heap",
        takes: Takes::Get,
        about: "not built in: see its answer",
        answer: no_profiles,
    },
];

/// For Prometheus.
pub(super) const METRICS: &[Route] = &[
    Route {
        path: "/metrics",
        takes: Takes::Get,
        about: "every metric, as OpenMetrics text",
        answer: probes::metrics,
    },
    Route {
        path: "/stats/prometheus",
        takes: Takes::Get,
        about: "the same",
        answer: probes::metrics,
    },
];

/// For the kubelet.
pub(super) const READINESS: &[Route] = &[Route {
    path: "/healthz/ready",
    takes: Takes::Get,
    about: "whether the node serves, and what is wrong",
    answer: probes::readiness,
}];

fn index(_: &Context, _: &Asked) -> Answer {
    let line = |route: &Route| {
        let method = match route.takes {
            Takes::Get => "GET     ",
            Takes::Post => "POST    ",
            Takes::Both => "GET POST",
        };
        format!("{method}  {:<22}  {}\n", route.path, route.about)
    };
    Answer::text(StatusCode::OK, ADMIN.iter().map(line).collect::<String>())
}

fn no_profiles(_: &Context, _: &Asked) -> Answer {
    let text = "This proxy has no profiler built in. From the node, `perf record -g -p PID` shows where time goes, \
                and /metrics what is open and how much of it.\n";
    Answer::text(StatusCode::NOT_IMPLEMENTED, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_once_and_says_what_it_is() {
        for site in [ADMIN, METRICS, READINESS] {
            for (at, route) in site.iter().enumerate() {
                assert!(route.path.starts_with('/') && !route.about.is_empty(), "{}", route.path);
                assert!(site[..at].iter().all(|other| other.path != route.path), "{}", route.path);
            }
        }
    }
}
