//! The manual as one HTML page with a search field: `page.html` is the frame, which carries its
//! own style and script.

use std::fmt::Write as _;

use super::{Chapter, Entry, List, Manual, Piece, Remark, Row, Subject, VERSION, capital, pieces};
use crate::doc::{BULLET, DocText};
use crate::ir::TypeRef;

const FRAME: &str = include_str!("page.html");

pub(super) fn page(manual: &Manual<'_>) -> String {
    let mut contents = String::new();
    let mut body = String::new();
    for chapter in &manual.chapters {
        in_contents(&mut contents, chapter);
        let (title, anchor) = (escaped(chapter.title), &chapter.anchor);
        let _ = writeln!(body, "<section id=\"{anchor}\">\n<h2>{title}</h2>");
        for one in &chapter.entries {
            entry(&mut body, one);
        }
        body.push_str("</section>\n");
    }
    FRAME
        .replace("{{version}}", VERSION)
        .replace("{{contents}}\n", &contents)
        .replace("{{body}}\n", &body)
}

fn in_contents(out: &mut String, chapter: &Chapter<'_>) {
    let (title, anchor) = (escaped(chapter.title), &chapter.anchor);
    let _ = writeln!(out, "<h2><a href=\"#{anchor}\">{title}</a></h2>\n<ul>");
    for entry in &chapter.entries {
        let (kind, link) = (entry.subject.word(), link(entry.subject, entry.name));
        let _ = writeln!(out, "<li class=\"{kind}\">{link}</li>");
    }
    out.push_str("</ul>\n");
}

fn entry(out: &mut String, entry: &Entry<'_>) {
    let anchor = entry.subject.anchor(entry.name);
    let kind = entry.subject.word();
    let _ = writeln!(
        out,
        "<article id=\"{anchor}\" class=\"{kind}\">\n<h3>{} <code>{}</code></h3>",
        capital(kind),
        escaped(entry.name)
    );
    paragraphs(out, entry.doc);
    for one in &entry.lists {
        list(out, one);
    }
    for one in &entry.remarks {
        remark(out, one);
    }
    out.push_str("</article>\n");
}

fn paragraphs(out: &mut String, doc: &DocText) {
    let mut in_list = false;
    for paragraph in &doc.paragraphs {
        let item = paragraph.strip_prefix(BULLET);
        if item.is_some() != in_list {
            out.push_str(if in_list { "</ul>\n" } else { "<ul>\n" });
            in_list = !in_list;
        }
        let _ = match item {
            Some(item) => writeln!(out, "<li>{}</li>", inline(item)),
            None => writeln!(out, "<p>{}</p>", inline(paragraph)),
        };
    }
    if in_list {
        out.push_str("</ul>\n");
    }
}

fn list(out: &mut String, list: &List<'_>) {
    let _ = writeln!(out, "<h4>{}</h4>\n<dl>", escaped(&list.title));
    for row in &list.rows {
        let _ = writeln!(
            out,
            "<dt><code>{}</code>{}</dt>",
            escaped(row.name),
            about(row)
        );
        let _ = writeln!(out, "<dd>{}</dd>", inline(&row.doc.one_line()));
    }
    out.push_str("</dl>\n");
}

/// The type, and whether it may be absent.
fn about(row: &Row<'_>) -> String {
    let mut text = String::new();
    if let Some(ty) = row.ty {
        let _ = write!(text, " <span>{}</span>", type_text(ty));
    }
    if row.optional {
        text.push_str(" <em>optional</em>");
    }
    for feature in row.features {
        let _ = write!(text, " <em>{}</em>", escaped(feature));
    }
    text
}

fn remark(out: &mut String, remark: &Remark<'_>) {
    let ty = remark.ty.map(type_text).unwrap_or_default();
    let _ = writeln!(out, "<h4>{} {ty}</h4>", remark.title);
    if let Some(doc) = remark.doc {
        paragraphs(out, doc);
    }
    if !remark.text.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escaped(remark.text));
    }
}

fn link(subject: Subject, name: &str) -> String {
    let anchor = subject.anchor(name);
    format!("<a href=\"#{anchor}\"><code>{}</code></a>", escaped(name))
}

fn type_text(ty: &TypeRef) -> String {
    match ty {
        TypeRef::Builtin(builtin) => format!("<code>{}</code>", builtin.name()),
        TypeRef::Named(name) => link(Subject::Type, name),
        TypeRef::Array(element) => format!("list of {}", type_text(element)),
    }
}

fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Name(name) => {
                let _ = write!(out, "<code>{}</code>", escaped(name));
            }
            Piece::Words(words) => out.push_str(&escaped(words)),
        }
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
