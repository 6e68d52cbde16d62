"""Parts of the reasoning loop: reasoners, distilled traces, critics."""
