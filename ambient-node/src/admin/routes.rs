//! Which page is where.

use http::StatusCode;

use super::{Answer, Asked, Context, Route, Site, Standing, Takes, dump, explain, log_level, pods, probes, stop};
use crate::zds::Apart;

impl Site for Context {
    /// A new one gets a line here.
    const ADMIN: &'static [Route<Self>] = &[
        index(),
        Route {
            path: "/config_dump",
            takes: Takes::Get,
            about: "workloads, services, policies, certificates and connections, as istioctl ztunnel-config reads them",
            answer: dump::whole,
        },
        Route {
            path: "/explain",
            takes: Takes::Get,
            about: "?from=NAMESPACE/POD&to=ADDRESS:PORT: the way of a connection, its identities, and what policy says; &all=true: all of that",
            answer: explain::explained,
        },
        all_pods(),
        logging(),
        quit("stop: new connections go to a successor or are refused, open ones have the drain's time; ?immediate resets them"),
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
        Route {
            path: "/debug/pprof/heap/profiling",
            takes: Takes::Both,
            about: "not built in: see its answer",
            answer: no_profiles,
        },
    ];
    const METRICS: &'static [Route<Self>] = &metrics(probes::metrics);
    const READINESS: &'static [Route<Self>] = &[ready(probes::readiness)];

    fn standing(&self) -> &Standing {
        &self.standing
    }
}

impl Site for Apart {
    const ADMIN: &'static [Route<Self>] = &[
        index(),
        all_pods(),
        logging(),
        quit("stop: rules stay, and the proxy goes on with what it has"),
    ];
    const METRICS: &'static [Route<Self>] = &metrics(probes::metrics_of);
    const READINESS: &'static [Route<Self>] = &[ready(probes::readiness_of_enrolment)];

    fn standing(&self) -> &Standing {
        &self.standing
    }
}

const fn index<C: Site>() -> Route<C> {
    Route {
        path: "/",
        takes: Takes::Get,
        about: "this list",
        answer: list,
    }
}

const fn all_pods<C: Site>() -> Route<C> {
    Route {
        path: "/pods",
        takes: Takes::Get,
        about: "how each pod of the node stands; ?pod=[NAMESPACE/]NAME: all of one, and what is wrong with it",
        answer: pods::all,
    }
}

const fn logging<C: Site>() -> Route<C> {
    Route {
        path: "/logging",
        takes: Takes::Both,
        about: "what is logged; POST ?level=LEVEL or ?level=TARGET=LEVEL[,…] changes it, &reset begins from the start's",
        answer: log_level::logging,
    }
}

const fn quit<C: Site>(about: &'static str) -> Route<C> {
    Route {
        path: "/quitquitquit",
        takes: Takes::Post,
        about,
        answer: stop::quit,
    }
}

const fn metrics<C: Site>(answer: fn(&C, &Asked) -> Answer) -> [Route<C>; 2] {
    let takes = Takes::Get;
    [
        Route {
            path: "/metrics",
            takes,
            about: "every metric, as OpenMetrics text, under that name where it is asked for",
            answer,
        },
        Route {
            path: "/stats/prometheus",
            takes,
            about: "the same",
            answer,
        },
    ]
}

const fn ready<C: Site>(answer: fn(&C, &Asked) -> Answer) -> Route<C> {
    Route {
        path: "/healthz/ready",
        takes: Takes::Get,
        about: "whether the node serves, and what is wrong",
        answer,
    }
}

fn list<C: Site>(_: &C, _: &Asked) -> Answer {
    let line = |route: &Route<C>| {
        let method = match route.takes {
            Takes::Get => "GET     ",
            Takes::Post => "POST    ",
            Takes::Both => "GET POST",
        };
        format!("{method}  {:<22}  {}\n", route.path, route.about)
    };
    Answer::text(StatusCode::OK, C::ADMIN.iter().map(line).collect::<String>())
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
        fn look<C: Site>() {
            for pages in [C::ADMIN, C::METRICS, C::READINESS] {
                for (at, route) in pages.iter().enumerate() {
                    assert!(route.path.starts_with('/') && !route.about.is_empty(), "{}", route.path);
                    assert!(pages[..at].iter().all(|other| other.path != route.path), "{}", route.path);
                }
            }
        }
        look::<Context>();
        look::<Apart>();
    }
}
