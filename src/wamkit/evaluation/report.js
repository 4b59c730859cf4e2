// Rollouts play while they are in view, unless the reader asked for less motion.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches && "IntersectionObserver" in window) {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {}); else target.pause();
    }
  }, { threshold: 0.4 });
  document.querySelectorAll("video").forEach((video) => watcher.observe(video));
}
