//! What the service manager is told (sd_notify(3)). Without one, nothing happens.

use sd_notify::NotifyState;

/// The configuration is in force, the node serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// A reload begins. The time stamp lets systemd match it with its own request (`Type=notify-reload`); [`ready`] ends it, be
/// the file good or bad.
pub fn reloading() {
    let Ok(moment) = NotifyState::monotonic_usec_now() else {
        return;
    };
    tell(&[NotifyState::Reloading, moment]);
}

/// The node ends on purpose.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(cause = %error, "the service manager is not reached");
    }
}
