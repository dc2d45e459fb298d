//! Sockets of a namespace that were made before anybody asks for them.
//!
//! Making one there means to ask a thread that may enter the namespace, and to wait for it: two changes of threads for each
//! connection. So that thread makes some more at each visit, and the next connections take those.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use socket2::{Domain, Socket};

/// Unbound TCP sockets of one namespace, kept with a [`Netns`](super::Netns).
#[derive(Debug, Default)]
pub(super) struct Stock {
    v4: Mutex<Shelf>,
    v6: Mutex<Shelf>,
}

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<Kept>,
    /// How many the next visit makes: more each time that there were none left, none for who rarely asks.
    batch: usize,
    /// Since it was last swept.
    used: bool,
}

/// A socket that counts as kept until it is taken or dropped.
#[derive(Debug)]
struct Kept {
    socket: Socket,
    _count: Count,
}

/// Sockets that all stocks hold together.
#[derive(Clone, Debug, Default)]
pub(super) struct Total(Arc<AtomicUsize>);

#[derive(Debug)]
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Total {
    /// A place for one more, unless all are taken.
    fn place(&self) -> Option<Count> {
        let grown = |held: usize| (held < MOST).then_some(held + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
        taken.ok().map(|_| Count(self.0.clone()))
    }
}

impl Stock {
    fn shelf(&self, domain: Domain) -> &Mutex<Shelf> {
        if domain == Domain::IPV6 { &self.v6 } else { &self.v4 }
    }

    /// One of those that are there.
    pub(super) fn take(&self, domain: Domain) -> Option<Socket> {
        let mut shelf = self.shelf(domain).lock().unwrap_or_else(PoisonError::into_inner);
        shelf.used = true;
        shelf.sockets.pop().map(|kept| kept.socket)
    }

    /// Makes some more, after one was asked for that was not there. Stops at the first that cannot be made: nobody waits for
    /// these.
    pub(super) fn fill(&self, domain: Domain, total: &Total, make: impl Fn() -> Option<Socket>) {
        let wanted = {
            let mut shelf = self.shelf(domain).lock().unwrap_or_else(PoisonError::into_inner);
            let batch = (shelf.batch * 2).clamp(1, BATCH);
            // Several may have found it empty at once: the first visit fills it for all of them.
            mem::replace(&mut shelf.batch, batch).saturating_sub(shelf.sockets.len())
        };
        let made = || {
            let count = total.place()?;
            make().map(|socket| Kept { socket, _count: count })
        };
        let made: Vec<Kept> = (0..wanted).map_while(|_| made()).collect();
        self.shelf(domain)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sockets
            .extend(made);
    }

    /// Closes what nobody has asked for since the last time; whether something is left, or soon will be.
    pub(super) fn sweep(&self) -> bool {
        let swept = [&self.v4, &self.v6].map(|shelf| {
            let mut shelf = shelf.lock().unwrap_or_else(PoisonError::into_inner);
            let used = mem::take(&mut shelf.used);
            if !used {
                *shelf = Shelf::default();
            }
            used
        });
        swept.contains(&true)
    }
}

/// Sockets of one family that a visit makes at most.
const BATCH: usize = 16;
/// Sockets that all namespaces together have in stock: descriptors are for connections.
const MOST: usize = 512;

#[cfg(test)]
mod tests {
    use socket2::Type;

    use super::*;

    fn make() -> Option<Socket> {
        Socket::new(Domain::IPV4, Type::STREAM, None).ok()
    }

    fn held(total: &Total) -> usize {
        total.0.load(Ordering::Relaxed)
    }

    /// As connections do: take, or ask for one and have some more made.
    fn connect(stock: &Stock, total: &Total) -> bool {
        let taken = stock.take(Domain::IPV4).is_some();
        if !taken {
            stock.fill(Domain::IPV4, total, make);
        }
        taken
    }

    #[test]
    fn who_asks_often_finds_some_and_who_asks_once_keeps_none() {
        let (stock, total) = (Stock::default(), Total::default());
        assert!(!connect(&stock, &total));
        assert_eq!(held(&total), 0);
        let missed = (0..200).filter(|_| !connect(&stock, &total)).count();
        // 1 + 2 + 4 + 8 + 16 · n
        assert!((10..=20).contains(&missed), "{missed}");
        assert!(held(&total) <= BATCH);
        assert!(stock.take(Domain::IPV6).is_none());
    }

    #[test]
    fn those_who_miss_at_once_fill_it_once() {
        let (stock, total) = (Stock::default(), Total::default());
        (0..40).for_each(|_| stock.fill(Domain::IPV4, &total, make));
        assert_eq!(held(&total), BATCH);
    }

    #[test]
    fn what_nobody_asks_for_is_closed() {
        let (stock, total) = (Stock::default(), Total::default());
        for _ in 0..9 {
            connect(&stock, &total);
        }
        assert!(stock.sweep(), "it was used");
        assert!(held(&total) > 0);
        assert!(!stock.sweep(), "it was not");
        assert_eq!(held(&total), 0);
        assert!(!connect(&stock, &total));
        assert_eq!(held(&total), 0, "it begins again");
    }

    #[test]
    fn all_together_are_bounded_and_a_stock_that_is_dropped_gives_its_places_back() {
        let total = Total::default();
        let stocks: Vec<Stock> = (0..MOST / BATCH + 5).map(|_| Stock::default()).collect();
        for stock in &stocks {
            (0..9).for_each(|_| stock.fill(Domain::IPV4, &total, make));
        }
        assert_eq!(held(&total), MOST);
        drop(stocks);
        assert_eq!(held(&total), 0);
    }

    #[test]
    fn one_that_cannot_be_made_ends_the_visit() {
        let (stock, total) = (Stock::default(), Total::default());
        (0..9).for_each(|_| stock.fill(Domain::IPV4, &total, || None));
        assert_eq!(held(&total), 0);
    }
}
