/** What stands below a moving preview, in the languages of the pack; "#" are numbers in their order. */

/** @type {Record<string, Record<"step" | "segment" | "clip" | "frames", string>>} */
const WORDS = {
  en: { step: "step # of #", segment: "segment # of #", clip: "clip # of #", frames: "# latent frames" },
  de: { step: "Schritt # von #", segment: "Segment # von #", clip: "Clip # von #", frames: "# latente Bilder" },
  es: { step: "paso # de #", segment: "segmento # de #", clip: "clip # de #", frames: "# fotogramas latentes" },
  fr: { step: "étape # sur #", segment: "segment # sur #", clip: "clip # sur #", frames: "# images latentes" },
  ja: { step: "ステップ # / #", segment: "セグメント # / #", clip: "クリップ # / #", frames: "潜在フレーム #" },
  ko: { step: "스텝 # / #", segment: "세그먼트 # / #", clip: "클립 # / #", frames: "잠재 프레임 #개" },
  ru: { step: "шаг # из #", segment: "сегмент # из #", clip: "клип # из #", frames: "латентных кадров: #" },
  zh: { step: "第 # 步，共 # 步", segment: "第 # 段，共 # 段", clip: "第 # 个片段，共 # 个", frames: "# 个 Latent 帧" },
  "zh-TW": { step: "第 # 步，共 # 步", segment: "第 # 段，共 # 段", clip: "第 # 個片段，共 # 個", frames: "# 個 Latent 幀" },
};

/**
 * @param {unknown} locale of the page
 */
export function wordsOf(locale) {
  const name = String(locale);
  return WORDS[name] ?? WORDS[name.split("-")[0]] ?? WORDS.en;
}

export const LOCALES = Object.keys(WORDS);
