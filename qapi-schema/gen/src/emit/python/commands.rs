//! One method for each command. Required arguments come by place or name, optional ones by name.

use std::collections::BTreeSet;

use super::super::client::{Client, prose};
use super::text::{call, docstring, import, line, mentions, paragraphs};
use super::{annotation, class, snake};
use crate::ir::{Builtin, Command, Kind, Member, TypeRef};

/// `commands.py` or `async_commands.py`.
pub(super) fn module(client: &Client<'_>, asynchronous: bool) -> String {
    let mut body = String::new();
    let mut used = BTreeSet::new();
    let (name, word, caller) = if asynchronous {
        ("AsyncCommands", "async def", "AsyncCaller")
    } else {
        ("Commands", "def", "Caller")
    };
    body.push_str("\n\n");
    line(&mut body, 0, &format!("class {name}({caller}):"));
    line(&mut body, 1, "\"\"\"A method for each command.\"\"\"");
    for command in client.commands() {
        method(&mut body, client, command, word, &mut used);
    }
    let used: Vec<&str> = used.iter().map(String::as_str).collect();
    let mut out = "from __future__ import annotations\n\n".to_owned();
    import(&mut out, "typing", &["Any", "List", "Optional"], &body);
    out.push('\n');
    import(&mut out, "._wire", &["AsyncCaller", "Caller", "Fd"], &body);
    import(&mut out, ".types", &used, &body);
    out + &body
}

fn method(
    out: &mut String,
    client: &Client<'_>,
    command: &Command,
    word: &str,
    used: &mut BTreeSet<String>,
) {
    if let Some(returns) = &command.returns {
        mentions(returns, used);
    }
    let returns = command.returns.as_ref().map(annotation);
    let tail = format!(") -> {}:", returns.as_deref().unwrap_or("None"));
    let members = client.members(command.args.as_deref());
    line(out, 0, "");
    let head = format!("{word} {}(", snake(&command.name));
    call(out, 1, &head, &parameters(command, members, used), &tail);
    docstring(out, 2, &documentation(command, members));
    let mut items = vec![format!("\"{}\"", command.name)];
    items.push(match members {
        None => "options".to_owned(),
        Some([]) => "None".to_owned(),
        Some(members) => {
            let pairs = members.iter();
            let pairs = pairs.map(|one| format!("\"{}\": {}", one.name, snake(&one.name)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    });
    if let Some(ty) = &command.returns {
        items.push(annotation(ty));
    }
    if command.fds > 0 {
        items.push(
            if command.fds == 1 {
                "fds=(fd,)"
            } else {
                "fds=fds"
            }
            .to_owned(),
        );
    }
    let wait = if word == "def" { "" } else { "await " };
    let (function, alias) = match &command.returns {
        None => ("self._run(".to_owned(), false),
        Some(ty) if is_class(client, ty) => ("return self._ask(".to_owned(), false),
        Some(TypeRef::Builtin(_)) => ("return self._ask_any(".to_owned(), false),
        // A checker takes no alias for a class: the variable says what it is.
        Some(ty) => (format!("answer: {} = self._ask_any(", annotation(ty)), true),
    };
    let head = function.replace("self.", &format!("{wait}self."));
    call(out, 2, &head, &items, ")");
    if alias {
        line(out, 2, "return answer");
    }
}

/// Whether a type checker takes the annotation for a class.
fn is_class(client: &Client<'_>, ty: &TypeRef) -> bool {
    match ty {
        TypeRef::Array(_) => true,
        TypeRef::Builtin(builtin) => !matches!(builtin, Builtin::Any | Builtin::Null),
        TypeRef::Named(name) => matches!(client.schema.types[name].kind, Kind::Struct(_)),
    }
}

fn parameters(
    command: &Command,
    members: Option<&[Member]>,
    used: &mut BTreeSet<String>,
) -> Vec<String> {
    let mut parameters = vec!["self".to_owned()];
    let Some(members) = members else {
        let name = class(command.args.as_deref().unwrap_or_default());
        parameters.push(format!("options: {name}"));
        used.insert(name);
        return parameters;
    };
    for member in members {
        mentions(&member.ty, used);
    }
    let required = members.iter().filter(|one| !one.optional);
    parameters.extend(required.map(|one| format!("{}: {}", snake(&one.name), annotation(&one.ty))));
    let mut by_name = Vec::new();
    match command.fds {
        0 => {}
        1 => by_name.push("fd: Fd".to_owned()),
        _ => by_name.push("fds: List[Fd]".to_owned()),
    }
    let optional = members.iter().filter(|one| one.optional);
    by_name.extend(optional.map(|one| {
        format!(
            "{}: Optional[{}] = None",
            snake(&one.name),
            annotation(&one.ty)
        )
    }));
    if !by_name.is_empty() {
        parameters.push("*".to_owned());
        parameters.extend(by_name);
    }
    parameters
}

fn documentation(command: &Command, members: Option<&[Member]>) -> Vec<String> {
    let mut doc = paragraphs(&command.doc, &format!("Command ``{}``.", command.name));
    let mut arguments = Vec::new();
    if members.is_none() {
        arguments.push("    options: What there is to say, by kind.".to_owned());
    }
    if command.fds > 0 {
        let name = if command.fds == 1 { "fd" } else { "fds" };
        arguments.push(format!(
            "    {name}: What goes along; it stays yours, and open."
        ));
    }
    for member in members.unwrap_or_default() {
        let text = prose(&member.doc, "``").join(" ");
        if !text.is_empty() {
            arguments.push(format!("    {}: {text}", snake(&member.name)));
        }
    }
    if !arguments.is_empty() {
        doc.push(format!("Args:\n{}", arguments.join("\n")));
    }
    for (title, text) in [
        ("Returns", &command.returns_doc),
        ("Raises", &command.errors_doc),
    ] {
        if let Some(text) = text {
            let items = prose(text, "``").join("\n    ");
            doc.push(format!("{title}:\n    {items}"));
        }
    }
    doc
}
