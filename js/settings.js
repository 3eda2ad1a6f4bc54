/**
 * The settings of the pack in ComfyUI's own dialog. The server reads them from the user's settings file, where they can
 * be set without a page as well.
 */
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "opensora.settings",
  settings: [
    {
      id: "OpenSora.Stored.KeepDays",
      name: "Keep segments, unfinished decodes and saved latents for so many days",
      tooltip:
        "When ComfyUI starts, what Open-Sora keeps in the output folder and has not changed for so many days is removed, " +
        "and the log says what. 0: nothing is removed.",
      type: "number",
      defaultValue: 0,
      attrs: { min: 0, max: 100000, step: 1 },
    },
    {
      id: "OpenSora.Preview.Mode",
      name: "Show clips while they are sampled",
      tooltip:
        "Where ComfyUI's own setting for live previews is on: all latent frames as a loop, some of them side by side, or " +
        "the first one. Off computes nothing; ComfyUI's own picture stays.",
      type: "combo",
      options: [
        { text: "Loop", value: "loop" },
        { text: "Contact sheet", value: "sheet" },
        { text: "First frame", value: "first" },
        { text: "Off", value: "off" },
      ],
      defaultValue: "loop",
    },
  ],
});
