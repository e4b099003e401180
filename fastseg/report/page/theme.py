"""Colours and style sheet of the report, shared by its charts and its page.

A chart is drawn once in the light colours; on the page every one of them becomes a CSS variable,
so that charts follow the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# the two networks that are compared differ in hue along the blue-orange axis, which every common
# form of colour blindness keeps apart, and in lightness, which survives a black and white print
LIGHT = {
    "paper": "#fefefe",
    "ink": "#1c2632",
    "muted": "#5a6775",
    "line": "#d8dee5",
    "wash": "#f3f5f8",
    "reference": "#7d93ad",
    "result": "#c4500b",
    "third": "#0b7f64",
    "fourth": "#83467d",
}
DARK = {
    "paper": "#12171d",
    "ink": "#e4e9ef",
    "muted": "#9aa7b5",
    "line": "#313b46",
    "wash": "#1a212a",
    "reference": "#8ba1bb",
    "result": "#f08a45",
    "third": "#3fb596",
    "fourth": "#c58fc0",
}
_COMPARED = ("reference", "result")
_SPARE = ("third", "fourth")


def roles(names: Iterable[str], compared: Sequence[str] | None) -> dict[str, str]:
    """The theme colour of every network or stage, in the order of ``names``.

    Args:
        names: of networks or stages.
        compared: the two whose difference is the gain; they always have the same two colours.
    """
    fixed = dict(zip(compared or (), _COMPARED, strict=False))
    free = _SPARE if fixed else (_COMPARED[1], *_SPARE, _COMPARED[0])
    chosen: dict[str, str] = {}
    spare = 0
    for name in names:
        if name in fixed:
            chosen[name] = fixed[name]
        else:
            chosen[name] = free[spare % len(free)]
            spare += 1
    return chosen


def style_sheet() -> str:
    """The CSS of the page; printing always uses the light colours."""
    return (
        f":root{{color-scheme:light;{_variables(LIGHT)}}}\n"
        "@media screen and (prefers-color-scheme:dark)"
        f"{{:root{{color-scheme:dark;{_variables(DARK)}}}}}\n{_RULES}"
    )


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.5;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  font-size:16px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
main{max-width:1080px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem;letter-spacing:-.01em;
  overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:0 0 .25rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:1.75rem 0 .5rem;overflow-wrap:anywhere}
p{margin:.25rem 0 1rem;max-width:44rem}
a{color:inherit;text-decoration-color:var(--muted);text-underline-offset:.2em}
.lead{font-size:1.15rem;max-width:48rem}
.note,figcaption,.missing,nav{color:var(--muted);font-size:.9rem}
.missing{border-left:3px solid var(--line);padding:.25rem .75rem}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:1.25rem 0 0}
section{margin-top:3rem;border-top:1px solid var(--line);padding-top:1.25rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
  font-size:.85em}
pre{background:var(--wash);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;margin:.5rem 0 1rem;
  line-height:1.45}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
figure{margin:0;break-inside:avoid}
figcaption{margin-bottom:.15rem}
svg{display:block;width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt}
summary{cursor:pointer;padding:.25rem 0}
.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.15rem 1rem;
  margin:1.25rem 0 0;font-size:.9rem}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:.9rem;
  margin:1.5rem 0 0}
.card{background:var(--wash);border-radius:8px;padding:.9rem 1.1rem;break-inside:avoid}
.card h3{margin:0;font-size:.9rem;font-weight:500;color:var(--muted)}
.card dl{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;margin:.35rem 0 0}
.card dt{font-size:.8rem;color:var(--muted);display:flex;align-items:center;gap:.4rem}
.card dd{margin:0;font-size:1.6rem;line-height:1.25;font-variant-numeric:tabular-nums;
  letter-spacing:-.01em}
.key{display:inline-block;width:.7em;height:.7em;border-radius:2px;flex:none;
  box-shadow:inset 0 0 0 1px rgba(127,127,127,.35)}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.85rem;color:var(--muted);
  list-style:none;margin:.25rem 0 .5rem;padding:0}
.keys li{display:flex;align-items:center;gap:.4rem}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}
table{border-collapse:collapse;font-size:.8rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.32rem .3rem;text-align:right;white-space:nowrap;font-weight:400;
  border-bottom:1px solid var(--line)}
thead th{color:var(--muted);vertical-align:bottom}
th[scope=row]{text-align:left;position:sticky;left:0;background:var(--paper)}
.best{font-weight:650}
.rule{border-left:1px solid var(--line)}
tr.gain td,tr.gain th{border-bottom:0}
tr.gain .less{color:var(--muted)}
.classes{max-width:760px}
.classes th[scope=row] .key{margin-right:.5rem}
.classes thead th{text-align:left;white-space:normal}
.classes td{min-width:4.4rem;background:linear-gradient(to right,
  color-mix(in srgb,var(--bar,transparent) 45%,transparent) calc(var(--v,0)*1%),transparent 0)
  no-repeat .3rem center/calc(100% - 3.1rem) 70%}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));
  gap:1.25rem 1.5rem;align-items:start}
.panels.small{grid-template-columns:repeat(auto-fill,minmax(min(270px,100%),1fr))}
.wide{min-width:620px;max-width:860px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,
  minmax(max(min(140px,45%),(100% - (var(--n) - 1)*.75rem)/var(--n)),1fr));gap:.75rem;
  margin:.5rem 0 1rem}
.tiles img{display:block;width:100%;height:auto;border-radius:3px;image-rendering:pixelated;
  background:var(--wash)}
.tiles figcaption{display:flex;align-items:center;gap:.4rem;font-size:.8rem;margin:.1rem 0 .3rem}
.tiles figcaption b{color:var(--ink);font-weight:600}
.tiles figcaption span:last-child{margin-left:auto;font-variant-numeric:tabular-nums}
.tiles img+figcaption{margin-top:.5rem}
@media (max-width:600px){main{padding:1.5rem 1rem 3rem}h1{font-size:1.5rem}
  .lead{font-size:1.05rem}.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:.4rem}
  .classes td{min-width:3.2rem;font-size:.75rem;background-size:calc(100% - .6rem) 70%}
  .classes th[scope=row] .key{margin-right:.3rem}}
@media print{main{max-width:none;padding:0}nav{display:none}section{margin-top:1.5rem}
  table{font-size:.68rem}th,td{padding:.2rem .25rem}.scroll{overflow:visible}
  h2,h3,.note{break-after:avoid}.cards{grid-template-columns:repeat(3,1fr);gap:.5rem}
  .card{padding:.6rem .7rem}.card dl{gap:.2rem .8rem}.card dd{font-size:1.15rem}
  tr{break-inside:avoid}.wide{min-width:0;max-width:none}.sample{break-inside:avoid}
  .panels,.panels.small{grid-template-columns:repeat(2,1fr)}
  .tiles{grid-template-columns:repeat(var(--n),1fr)}}
"""
