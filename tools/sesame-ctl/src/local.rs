//! Commands of this program, beside those of QMP.

/// A command that the VM does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// What commands there are.
    Help,
    /// The next event, or all.
    Events,
    /// All events, for people.
    Tail,
    /// What goes on, again and again.
    Top,
    /// A prompt whose session is written down.
    Record,
    /// A session once more.
    Replay,
    /// The end of the prompt.
    Exit,
}

impl Local {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Help,
        Self::Events,
        Self::Tail,
        Self::Top,
        Self::Record,
        Self::Replay,
        Self::Exit,
    ];

    /// The one of that name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|local| local.name() == name)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        self.usage().split(' ').next().unwrap_or_default()
    }

    /// How it is typed.
    pub(crate) fn usage(self) -> &'static str {
        match self {
            Self::Help => "help [COMMAND [KEY=VALUE]...]",
            Self::Events => "events [NAME]... [--follow]",
            Self::Tail => "tail [NAME]...",
            Self::Top => "top [--interval SECONDS]",
            Self::Record => "record FILE",
            Self::Replay => "replay FILE [--check]",
            Self::Exit => "exit",
        }
    }

    /// What it does.
    pub(crate) fn purpose(self) -> &'static str {
        match self {
            Self::Help => "Lists commands, or tells what one takes",
            Self::Events => "Writes the next event as JSON; with --follow, all until the VM ends",
            Self::Tail => "Writes events as they come, one line each with its time",
            Self::Top => "Shows what the VM does, and looks again every two seconds",
            Self::Record => "Adds all that is said from now on to a script",
            Self::Replay => "Runs a script; --check compares replies, --keep-going passes failures",
            Self::Exit => "Leaves the prompt, as Ctrl-D does; `quit` ends the VM",
        }
    }
}
