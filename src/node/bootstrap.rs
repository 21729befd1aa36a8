//! `acl.bootstrap`: for how long a new node admits strangers to its relay before it knows a member.
//!
//! The window opens once in the life of a state directory, at the first start with `acl.reserve = "members"`. The mark that
//! it did is durable before anybody is admitted by it, so that neither a crash nor a restart opens it again; it closes
//! with the first member or when its time is up by a clock that nobody sets.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::disk;
use crate::acl::Window;

#[derive(Debug)]
pub struct Bootstrap {
    mark: PathBuf,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// No configuration has been in force in this process.
    Fresh,
    /// None of those that have been asked for members.
    Unused,
    Open {
        since: Instant,
    },
    Closed(Why),
}

/// Why no stranger is admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It has been open in an earlier run, or this node never needed one.
    #[error("used at the first start")]
    Before,
    /// A member is known.
    #[error("a member is known")]
    Member,
    /// `acl.bootstrap` is over, or `"0s"`.
    #[error("`acl.bootstrap` is over")]
    Time,
    /// `acl.reserve` became `"members"` while the node ran.
    #[error("the node ran before it asked for members")]
    Late,
    /// The mark cannot be written, and without it a restart would open the window again.
    #[error("it cannot be noted in `node.state_dir` that it was open: {0}")]
    Disk(String),
}

impl Bootstrap {
    pub fn of(state_dir: &Path) -> Self {
        Self {
            mark: state_dir.join("bootstrap"),
            stage: Stage::Fresh,
        }
    }

    /// A configuration is in force. `wanted`: it asks for members. Blocks for the disk, the first time that it does.
    pub fn follow(&mut self, wanted: bool, window: Duration, now: Instant) {
        match self.stage {
            Stage::Fresh if wanted => self.begin(window, now),
            Stage::Fresh => self.stage = Stage::Unused,
            Stage::Unused if wanted => self.pass(),
            Stage::Unused | Stage::Open { .. } | Stage::Closed(_) => {}
        }
    }

    fn begin(&mut self, window: Duration, now: Instant) {
        self.stage = match self.mark.symlink_metadata() {
            Ok(_) => Stage::Closed(Why::Before),
            Err(_) => match disk::write_whole(&self.mark, MARK) {
                Ok(()) if window.is_zero() => Stage::Closed(Why::Time),
                Ok(()) => Stage::Open { since: now },
                Err(error) => Stage::Closed(Why::Disk(error.to_string())),
            },
        };
    }

    /// Who has run without members needs no window to find them.
    fn pass(&mut self) {
        self.stage = Stage::Closed(Why::Late);
        if let Err(error) = disk::write_whole(&self.mark, MARK) {
            tracing::warn!(file = %self.mark.display(), cause = %error, "cannot note that no bootstrap window is needed");
        }
    }

    /// Closes the window if it has to. `members`: whether a member other than this node is known; `window`: `acl.bootstrap`
    /// as it is in force, so that shortening it closes an open window.
    pub fn look(&mut self, members: bool, window: Duration, now: Instant) -> Window {
        if let Stage::Open { since } = self.stage {
            if members {
                self.stage = Stage::Closed(Why::Member);
            } else if now.saturating_duration_since(since) >= window {
                self.stage = Stage::Closed(Why::Time);
            }
        }
        match self.stage {
            Stage::Open { .. } => Window::Open,
            Stage::Fresh | Stage::Unused | Stage::Closed(_) => Window::Closed,
        }
    }

    /// When an open window closes by itself.
    pub fn deadline(&self, window: Duration) -> Option<Instant> {
        match self.stage {
            Stage::Open { since } => since.checked_add(window),
            Stage::Fresh | Stage::Unused | Stage::Closed(_) => None,
        }
    }

    /// `None` while it is open, or was never asked for.
    pub fn closed(&self) -> Option<&Why> {
        match &self.stage {
            Stage::Closed(why) => Some(why),
            Stage::Fresh | Stage::Unused | Stage::Open { .. } => None,
        }
    }
}

/// What the mark says to whoever finds it.
const MARK: &[u8] =
    b"The bootstrap window of this node has been used (acl.bootstrap).\nRemove this file while the node is stopped to have it once more.\n";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const WINDOW: Duration = Duration::from_secs(120);

    fn begun(folder: &Path) -> (Bootstrap, Instant) {
        let now = Instant::now();
        let mut bootstrap = Bootstrap::of(folder);
        bootstrap.follow(true, WINDOW, now);
        (bootstrap, now)
    }

    #[test]
    fn it_is_open_until_its_time_is_up() {
        let folder = tempfile::tempdir().unwrap();
        let (mut bootstrap, began) = begun(folder.path());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(bootstrap.look(false, WINDOW, at(0)), Window::Open);
        assert_eq!(bootstrap.look(false, WINDOW, at(119)), Window::Open);
        assert_eq!(bootstrap.deadline(WINDOW), Some(at(120)));
        assert_eq!(bootstrap.look(false, WINDOW, at(120)), Window::Closed);
        assert_eq!(bootstrap.look(false, WINDOW * 9, at(121)), Window::Closed);
        assert_eq!(bootstrap.closed(), Some(&Why::Time));
    }

    #[test]
    fn the_first_member_closes_it_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let (mut bootstrap, began) = begun(folder.path());
        assert_eq!(bootstrap.look(true, WINDOW, began), Window::Closed);
        assert_eq!(bootstrap.look(false, WINDOW, began), Window::Closed);
        assert_eq!(bootstrap.closed(), Some(&Why::Member));
    }

    #[test]
    fn a_second_run_does_not_open_it_however_the_first_ended() {
        let folder = tempfile::tempdir().unwrap();
        let (first, _) = begun(folder.path());
        drop(first);
        let (mut second, began) = begun(folder.path());
        assert_eq!(second.look(false, WINDOW, began), Window::Closed);
        assert_eq!(second.closed(), Some(&Why::Before));
    }

    #[test]
    fn a_shorter_window_closes_one_that_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let (mut bootstrap, began) = begun(folder.path());
        let later = began + Duration::from_secs(10);
        assert_eq!(
            bootstrap.look(false, Duration::from_secs(5), later),
            Window::Closed
        );
    }

    #[test]
    fn without_a_mark_nobody_is_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let (mut bootstrap, began) = begun(&gone);
        assert_eq!(bootstrap.look(false, WINDOW, began), Window::Closed);
        assert!(matches!(bootstrap.closed(), Some(Why::Disk(_))));
    }

    #[test]
    fn a_node_that_ran_without_members_gets_none_when_it_wants_them() {
        let folder = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut bootstrap = Bootstrap::of(folder.path());
        bootstrap.follow(false, WINDOW, now);
        bootstrap.follow(true, WINDOW, now);
        assert_eq!(bootstrap.look(false, WINDOW, now), Window::Closed);
        assert_eq!(bootstrap.closed(), Some(&Why::Late));
        assert!(fs::exists(folder.path().join("bootstrap")).unwrap());
        let (mut second, began) = begun(folder.path());
        assert_eq!(second.look(false, WINDOW, began), Window::Closed);
    }

    #[test]
    fn a_window_of_no_time_is_used_up_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut bootstrap = Bootstrap::of(folder.path());
        bootstrap.follow(true, Duration::ZERO, now);
        assert_eq!(bootstrap.look(false, WINDOW, now), Window::Closed);
        let (mut second, began) = begun(folder.path());
        assert_eq!(second.look(false, WINDOW, began), Window::Closed);
    }
}
