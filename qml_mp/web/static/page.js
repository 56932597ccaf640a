// Keeps the page live: one stream of changes while the tab is seen, polling where a stream does not pass,
// what a person has opened, ticked, typed or focused across an exchange, and times in the person's own zone.
(function () {
  "use strict"

  const SILENT_MS = 40000 // longer than two beats of the server
  const HELLO_MS = 4000 // by when a stream that passes has said something
  const POLL_MS = 2000
  const AGAIN_MS = 1000

  // What the SSE extension takes for an EventSource: one that never ends. Behind it real ones come and go with
  // the tab's being seen; while none passes, it says "changed" by itself.
  class Stream extends EventTarget {
    constructor(url) {
      super()
      this.url = url
      this.readyState = 1
      this.source = null
      this.poll = null
      this.patience = null
      this.onVisibility = () => (document.hidden ? this.rest() : this.wake())
      document.addEventListener("visibilitychange", this.onVisibility)
      window.addEventListener("pagehide", () => this.rest())
      window.addEventListener("pageshow", (event) => event.persisted && this.wake())
      if (!document.hidden) this.connect()
    }

    close() {
      document.removeEventListener("visibilitychange", this.onVisibility)
      this.rest()
      this.readyState = 2
    }

    rest() {
      if (this.source) this.source.close()
      this.source = null
      clearTimeout(this.patience)
      clearInterval(this.poll)
      this.poll = null
      show("off")
    }

    wake() {
      this.say("changed")
      this.connect()
    }

    connect() {
      if (this.source || this.readyState === 2) return
      const source = (this.source = new EventSource(this.url))
      this.wait(HELLO_MS)
      source.addEventListener("hello", () => this.heard())
      source.addEventListener("beat", () => this.heard())
      source.addEventListener("changed", () => {
        this.heard()
        this.say("changed")
      })
      source.addEventListener("end", () => this.again(0))
      source.onerror = () => {
        this.pollMeanwhile()
        if (source.readyState === EventSource.CLOSED) this.again(AGAIN_MS)
      }
    }

    again(delay) {
      if (this.source) this.source.close()
      this.source = null
      setTimeout(() => !document.hidden && this.connect(), delay)
    }

    heard() {
      clearInterval(this.poll)
      this.poll = null
      show("live")
      this.wait(SILENT_MS)
    }

    wait(patience) {
      clearTimeout(this.patience)
      this.patience = setTimeout(() => this.pollMeanwhile(), patience)
    }

    pollMeanwhile() {
      if (this.poll || document.hidden) return
      show("polling")
      this.poll = setInterval(() => this.say("changed"), POLL_MS)
    }

    say(name) {
      this.dispatchEvent(new MessageEvent(name, { data: "." }))
    }
  }

  const WORDS = { live: "live", polling: "every 2 s", off: "not live" }

  function show(state) {
    const shown = document.getElementById("stream")
    if (!shown || shown.dataset.state === state) return
    shown.dataset.state = state
    shown.querySelector(".word").textContent = WORDS[state]
  }

  if (window.htmx) window.htmx.createEventSource = (url) => new Stream(url)

  // Parts that are fetched again.

  const shownOf = new WeakMap()
  let kept = null
  let pressed = null // what is held down: were it exchanged before it is let go, the click would be lost

  // A menu, or what is dragged, may take the release for itself.
  document.addEventListener("pointerdown", (event) => (pressed = event.button === 0 ? event.target : null))
  for (const name of ["pointerup", "pointercancel", "contextmenu", "dragend"]) {
    document.addEventListener(name, () => setTimeout(() => (pressed = null)))
  }

  function isBusy(part) {
    if (pressed && part.contains(pressed)) return true
    const active = document.activeElement
    const types = active && part.contains(active) && /^(INPUT|TEXTAREA|SELECT)$/.test(active.tagName)
    const selection = document.getSelection()
    const selects = selection && !selection.isCollapsed && part.contains(selection.anchorNode)
    return Boolean((types && active.type !== "checkbox") || selects)
  }

  document.addEventListener("htmx:beforeSwap", (event) => {
    const part = event.detail.target
    if (!part || !part.hasAttribute("data-live") || event.detail.isError) return
    trouble(null)
    const text = event.detail.serverResponse
    if (shownOf.get(part) === text || isBusy(part)) {
      event.detail.shouldSwap = false // nothing is new, or a person is writing or copying there
      return
    }
    shownOf.set(part, text)
    kept = {
      open: [...part.querySelectorAll("details[id]")].map((each) => [each.id, each.open]),
      ticked: [...part.querySelectorAll("input[type=checkbox][id]")].map((each) => [each.id, each.checked]),
      typed: [...part.querySelectorAll("input[id]:not([type=checkbox])")]
        .filter((each) => each.value !== each.defaultValue)
        .map((each) => [each.id, each.value]),
      focus: document.activeElement && part.contains(document.activeElement) && document.activeElement.id,
    }
  })

  document.addEventListener("htmx:afterSwap", (event) => {
    const part = event.detail.target
    if (!part) return
    if (kept) {
      for (const [id, open] of kept.open) set(id, "open", open)
      for (const [id, checked] of kept.ticked) set(id, "checked", checked)
      for (const [id, value] of kept.typed) set(id, "value", value)
      const focused = kept.focus && document.getElementById(kept.focus)
      if (focused) focused.focus({ preventScroll: true })
      kept = null
    }
    times(part)
    part.dispatchEvent(new CustomEvent("part:shown", { bubbles: true }))
  })

  function set(id, property, value) {
    const found = document.getElementById(id)
    if (found) found[property] = value
  }

  document.addEventListener("htmx:responseError", (event) => trouble(event.detail.xhr.responseText))
  document.addEventListener("htmx:sendError", () => trouble("The page's own server does not answer. It is asked again."))
  document.addEventListener("htmx:timeout", () => trouble("The page's own server is slow to answer. It is asked again."))

  function trouble(sentence) {
    const shown = document.getElementById("trouble")
    if (!shown) return
    shown.hidden = !sentence
    if (shown.textContent !== (sentence || "")) shown.textContent = sentence || ""
  }

  // Times that are typed, or copied from the page: of the person's own zone, as those that it shows. The server
  // takes one that names no zone for UTC.

  const ZONELESS = /^(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d(?:\.\d+)?)?))?$/

  function withZone(text) {
    const found = ZONELESS.exec(text.trim())
    if (!found) return text
    const time = `${found[1]}T${found[2] || "00:00"}`
    const east = -new Date(time).getTimezoneOffset()
    if (isNaN(east)) return text
    const [hours, minutes] = [Math.floor(Math.abs(east) / 60), Math.abs(east) % 60]
    return `${time}${east < 0 ? "-" : "+"}${pad(hours)}:${pad(minutes)}`
  }

  document.addEventListener("submit", (event) => {
    for (const field of event.target.querySelectorAll("input[data-time]")) field.value = withZone(field.value)
  })

  // Questions before a change.

  document.addEventListener("submit", (event) => {
    const question = event.target.dataset && event.target.dataset.confirm
    if (question && !window.confirm(question)) event.preventDefault()
  })

  // A change is sent once: while its answer is awaited, a second press would ask for a second change, and the
  // answer to that would be the only one that is seen. So none is sent then, unless the answer comes in another
  // tab or window: then the same form alone has to wait. Who has stopped the load may try again after a while.

  const SENT_MS = 30000
  let sent = { at: -Infinity }
  let opensAnother = false // what was pressed last, by its modifiers
  const unsent = document.getElementById("unsent")

  document.addEventListener("click", (event) => {
    opensAnother = event.ctrlKey || event.metaKey || event.shiftKey || event.altKey
  })

  document.addEventListener("submit", (event) => {
    // not event.target.method: in one form a field has that name
    if (event.defaultPrevented || event.target.getAttribute("method") !== "post") return
    const isAwaited = event.timeStamp - sent.at < SENT_MS && (!sent.opensAnother || sent.form === event.target)
    if (isAwaited) event.preventDefault()
    else sent = { at: event.timeStamp, form: event.target, opensAnother }
    unsent.hidden = !isAwaited
  })
  window.addEventListener("pageshow", (event) => {
    if (!event.persisted) return
    sent = { at: -Infinity } // back from the answer
    unsent.hidden = true
  })
  window.addEventListener("focus", () => {
    if (sent.opensAnother) unsent.hidden = true // back from where the answer is
  })

  // Times.

  // By how much the browser's clock is ahead of the storage's, by which all instants are.
  const ahead = Date.now() - Date.parse(document.querySelector("[data-now]").dataset.now)

  function secondsSince(at) {
    return (Date.now() - ahead - at) / 1000
  }

  const pad = (number) => String(number).padStart(2, "0")

  function local(at) {
    const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`
    return `${day} ${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`
  }

  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]

  // The two largest units; with a coarse one, seconds only below a minute.
  function length(seconds, coarse) {
    const whole = Math.max(0, Math.floor(seconds))
    const first = UNITS.findIndex(([size]) => whole >= size)
    if (first < 0) return "0 s"
    const [size, name] = UNITS[first]
    const next = UNITS[first + 1]
    const more = next && !(coarse && next[1] === "s") ? Math.floor((whole % size) / next[0]) : 0
    return `${Math.floor(whole / size)} ${name}` + (more ? ` ${more} ${next[1]}` : "")
  }

  function ago(at) {
    const seconds = secondsSince(at)
    if (Math.abs(seconds) < 1.5) return "now"
    return seconds > 0 ? `${length(seconds, true)} ago` : `in ${length(-seconds, true)}`
  }

  function put(element, text) {
    if (element.textContent !== text) element.textContent = text
  }

  function times(within) {
    for (const each of within.querySelectorAll("time[data-instant], time[data-ago], time[data-since]")) {
      const at = new Date(each.dateTime)
      if (isNaN(at)) continue
      if (!each.dataset.utc) {
        each.dataset.utc = each.title
        each.title = `${local(at)} here · ${each.title}`
      }
      if ("instant" in each.dataset) put(each, local(at))
      else if ("since" in each.dataset) put(each, length(secondsSince(at)))
      else put(each, ago(at))
    }
  }

  function start() {
    times(document)
    setInterval(() => document.hidden || times(document), 1000)
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start)
  else start()
})()
