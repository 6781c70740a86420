// Browsers start no Worker on a page opened from the disk. This one runs the script in a hidden
// frame of the same page instead, so that the search works there too.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      this.inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inner.importScripts = (...urls) =>
        urls.reduce((before, next) => before.then(() => load(this.inner, next)), Promise.resolve())
      load(this.inner, url).then(() => {
        const messages = this.waiting
        this.waiting = null
        messages.forEach(data => this.postMessage(data))
      })
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.inner.dispatchEvent(new MessageEvent("message", { data }))
    }

    terminate() {
      this.inner.frameElement.remove()
    }
  }

  function load(inner, url) {
    return new Promise((done, failed) => {
      const script = inner.document.createElement("script")
      script.src = new URL(url, location.href)
      script.onload = done
      script.onerror = failed
      inner.document.head.append(script)
    })
  }
}
